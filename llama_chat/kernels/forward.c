/* A forward pass of a Llama model with packed weights.
 *
 * It computes the same as model/transformer.py, with activations in float32, in one parallel region
 * for all layers. Each thread computes its share of the rows of every matrix, and the operations
 * that need no other rows; the threads wait for each other where one needs the results of others.
 *
 * For a few tokens, every thread normalizes and quantizes all activations by itself, which takes
 * less time than waiting for another thread. For many, the threads share that work, too.
 */

#include "forward.h"

#include <time.h>

#include "cpu.h"

/* State of one thread in a pass. */
typedef struct {
    const kernel_set *kernels;
    const model_weights *w;
    const kv_cache *cache;
    const shared_buffers *shared;
    const thread_buffers *local;
    int n_x;
    team_member me;
    const quantized_rows *quantized; /* input of the next products, shared or local */
} worker;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* ---- products ------------------------------------------------------------------------------- */

/* Quantize x (n_x, n), normalized if `norm` is given, as input of the `matrices`. */
static void quantize_input(worker *t, const float *x, int64_t n, const float *norm,
                           const packed_matrix *const *matrices, int n_matrices)
{
    const kernel_set *kernels = t->kernels;
    const int tile = max_tile(kernels), is_shared = t->n_x > tile;
    int is_used[2] = {0, 0};
    for (int i = 0; i < n_matrices; i++)
        is_used[matrices[i]->layout.group == 32] = 1;
    t->quantized = is_shared ? &t->shared->quantized : &t->local->quantized;
    const int step = is_shared ? t->me.n_threads : 1, first = is_shared ? t->me.index : 0;
    for (int start = first * tile; start < t->n_x; start += step * tile)
        for (int m = start; m < t->n_x && m < start + tile;) {
            const int size = next_tile_size(kernels, t->n_x - m);
            const float *rows = x + m * n;
            if (norm) {
                for (int i = 0; i < size; i++)
                    kernels->rms_norm(rows + i * n, norm, n, t->w->norm_eps,
                                      t->local->normed + i * n);
                rows = t->local->normed;
            }
            for (int i = 0; i < 2; i++) {
                const int group = i ? 32 : 16;
                uint8_t *to = t->quantized->by_group[i] + m * quantized_row_bytes(n, group);
                if (is_used[i])
                    quantize_tile(kernels, rows, 0, n, group, size, to);
            }
            m += size;
        }
    if (is_shared)
        wait_for_team();
}

/* Rows of the weights in this thread's share of a product: whole panels, and a multiple of `unit`
 * rows. */
static range rows_of_share(const worker *t, const packed_matrix *w, int64_t unit)
{
    int64_t step = PANEL;
    while (step % unit)
        step += PANEL;
    range share = share_of(round_up(w->n_rows, step) / step, t->me);
    range rows = {share.start * step, share.end * step};
    if (rows.end > w->n_rows)
        rows.end = w->n_rows;
    return rows;
}

INLINE range panels_of(range rows)
{
    return (range){rows.start / PANEL, (rows.end + PANEL - 1) / PANEL};
}

/* Compute this thread's share of a product, in y (n_x, rows of w), and return its rows. */
static range multiply_share(const worker *t, const packed_matrix *w, int64_t unit, float *y,
                            int store_mode)
{
    range rows = rows_of_share(t, w, unit);
    multiply_panels(t->kernels, w, rows_for(t->quantized, w), t->n_x, y, store_mode,
                    panels_of(rows));
    return rows;
}

/* ---- a layer -------------------------------------------------------------------------------- */

/* Columns of keys or values that one thread must compute together: a whole head if its numbers
 * share a scale. */
static int64_t store_unit(const kv_cache *cache)
{
    return cache->kind == INT8 ? cache->head_dim : 1;
}

/* Compute queries, scaled by 1 / sqrt(head_dim), keys and values of the new tokens. */
static void run_projections(worker *t, int64_t l)
{
    const layer_weights *layer = t->w->layers + l;
    const shared_buffers *b = t->shared;
    const kernel_set *kernels = t->kernels;
    const kv_cache *cache = t->cache;
    const int64_t dim = t->w->dim, unit = store_unit(cache);
    const int64_t kv_width = cache->n_kv_heads * cache->head_dim;
    quantize_input(t, b->x, dim, layer->attention_norm,
                   (const packed_matrix *[]){&layer->wq, &layer->wk, &layer->wv}, 3);
    range columns = multiply_share(t, &layer->wq, 1, b->q, STORE_FLOAT);
    kernels->rotate(cache, b->q, t->n_x, cache->n_heads * cache->head_dim, columns,
                    1 / sqrtf((float)cache->head_dim));
    columns = multiply_share(t, &layer->wk, unit, b->k, STORE_FLOAT);
    kernels->rotate(cache, b->k, t->n_x, kv_width, columns, 1);
    kernels->store_rows(cache, cache->keys, cache->key_scales, l, b->k, t->n_x, columns);
    columns = multiply_share(t, &layer->wv, unit, b->v, STORE_FLOAT);
    kernels->store_rows(cache, cache->values, cache->value_scales, l, b->v, t->n_x, columns);
    wait_for_team();
}

/* Add wo * attention to the residual stream. */
static void add_attention(worker *t, const layer_weights *layer)
{
    const shared_buffers *b = t->shared;
    quantize_input(t, b->attention, layer->wo.n_columns, NULL,
                   (const packed_matrix *[]){&layer->wo}, 1);
    multiply_share(t, &layer->wo, 1, b->x, ACCUMULATE);
    wait_for_team();
}

static void run_feed_forward(worker *t, const layer_weights *layer)
{
    const shared_buffers *b = t->shared;
    const int64_t hidden = t->w->hidden_dim;
    quantize_input(t, b->x, t->w->dim, layer->ffn_norm,
                   (const packed_matrix *[]){&layer->w1, &layer->w3}, 2);
    multiply_share(t, &layer->w3, 1, b->up, STORE_FLOAT);
    range columns = multiply_share(t, &layer->w1, 1, b->gate, STORE_FLOAT);
    for (int m = 0; m < t->n_x; m++) {
        const int64_t at = m * hidden + columns.start;
        t->kernels->swiglu(b->gate + at, b->up + at, columns.end - columns.start);
    }
    wait_for_team();
    quantize_input(t, b->gate, hidden, NULL, (const packed_matrix *[]){&layer->w2}, 1);
    multiply_share(t, &layer->w2, 1, b->x, ACCUMULATE);
    wait_for_team();
}

static void run_layer(worker *t, int64_t l, pass_record *record)
{
    const layer_weights *layer = t->w->layers + l;
    const double began = now();
    run_projections(t, l);
    const double projected = now();
    attend(t->kernels, t->cache, l, t->shared->q, t->n_x, t->shared->attention,
           &t->local->attention, t->me);
    const double attended = now();
    add_attention(t, layer);
    const double added = now();
    run_feed_forward(t, layer);
    if (t->me.index == 0 && record) {
        record->projections += projected - began + added - attended;
        record->attention += attended - projected;
        record->feed_forward += now() - added;
    }
}

/* ---- logits --------------------------------------------------------------------------------- */

/* Compute the logits (n_x, vocab_size) of the tokens with the residual stream x.
 *
 * Quantized activations cost more accuracy here than in any other product, and reading the matrix
 * takes most of the time anyway: so their errors are quantized to 8 bits too, as further rows.
 */
static void run_output(worker *t, const float *x, int n_x, float *logits, pass_record *record)
{
    const double began = now();
    const kernel_set *kernels = t->kernels;
    const packed_matrix *output = &t->w->output;
    const int64_t dim = t->w->dim, vocab_size = output->n_rows;
    const int group = output->layout.group;
    uint8_t *quantized = rows_for(&t->local->quantized, output);
    range rows = rows_of_share(t, output, 1);
    const int64_t n_rows = rows.end - rows.start;
    for (int start = 0; start < n_x;) {
        const int n = next_tile_size(kernels, 2 * (n_x - start)) / 2;
        for (int m = 0; m < n; m++) {
            float *normed = t->local->normed + 2 * m * dim;
            kernels->rms_norm(x + (start + m) * dim, t->w->norm, dim, t->w->norm_eps, normed);
            kernels->quantization_error(normed, dim, group, normed + dim);
        }
        quantize_tile(kernels, t->local->normed, 0, dim, group, 2 * n, quantized);
        multiply_panels(kernels, output, quantized, 2 * n, t->shared->products, STORE_FLOAT,
                        panels_of(rows));
        for (int m = 0; m < n; m++) {
            float *to = logits + (start + m) * vocab_size + rows.start;
            const float *product = t->shared->products + 2 * m * vocab_size + rows.start;
            memcpy(to, product, sizeof(float) * (size_t)n_rows);
            kernels->add(to, product + vocab_size, n_rows);
        }
        start += n;
    }
    wait_for_team();
    if (t->me.index == 0 && record)
        record->output += now() - began;
}

/* ---- called from Python --------------------------------------------------------------------- */

/* Bytes of scratch memory that forward() needs for a team of up to `n_threads`. */
EXPORT int64_t forward_scratch_bytes(const model_weights *w, const kv_cache *cache, int n_x,
                                     int level, int n_threads)
{
    const kernel_set kernels = kernels_of(level);
    arena shared_memory = {0}, thread_memory = {0};
    shared_buffers shared;
    thread_buffers local;
    allocate_shared(&kernels, w, cache, n_x, &shared_memory, &shared, &local.attention);
    allocate_thread(&kernels, w, cache, n_x, &thread_memory, &local);
    return shared_memory.used + thread_memory.used * n_threads;
}

/* Run tokens through the layers `first` to `end`, exclusive: x (n_x, dim) holds the input of the
 * first layer, and afterwards the output of the last.
 *
 * Keys and values are stored after `length` rows of the cache. If `logits` (n_logits, vocab_size)
 * is not NULL, those of the last n_logits tokens are computed from the output. `scratch` has
 * forward_scratch_bytes() bytes; `record` may be NULL, and is added to. Uses `n_threads` threads,
 * or fewer if the system provides fewer, and not the default of OpenMP, which depends on the
 * calling thread.
 */
EXPORT void forward(const model_weights *w, const kv_cache *cache, float *x, int n_x,
                    int64_t first, int64_t end, float *logits, int n_logits, char *scratch,
                    pass_record *record, int level, int n_threads)
{
    (void)n_threads; /* not used without OpenMP */
    const kernel_set kernels = kernels_of(level);
    arena memory = {scratch, 0};
    shared_buffers shared = {.x = x};
    attention_buffers attention = {0};
    allocate_shared(&kernels, w, cache, n_x, &memory, &shared, &attention);
#pragma omp parallel num_threads(n_threads)
    {
        const team_member me = this_thread();
        thread_buffers local = {.attention = attention};
        arena local_memory = memory;
        for (int thread = 0; thread <= me.index; thread++)
            allocate_thread(&kernels, w, cache, n_x, &local_memory, &local);
        worker t = {.kernels = &kernels, .w = w, .cache = cache, .shared = &shared, .local = &local,
                    .n_x = n_x, .me = me};
        for (int64_t l = first; l < end; l++)
            run_layer(&t, l, record);
        if (me.index == 0 && record)
            record->n_threads = me.n_threads;
        if (logits)
            run_output(&t, x + (n_x - n_logits) * w->dim, n_logits, logits, record);
    }
}
