/* A forward pass of a Llama model.
 *
 * It computes the same as model/transformer.py, with activations in float32, in one parallel region
 * for all layers. The threads divide the rows of every matrix, along with the operations that need
 * no other rows (work_shares.h), and wait for each other where one needs the results of others.
 *
 * For a few tokens, every thread normalizes and converts all activations by itself, which takes
 * less time than waiting for another thread. For many, the threads share that work, too.
 */

#include "forward.h"

#include <time.h>

#include "cpu.h"

/* Bytes of weights that a thread takes at a time: long enough to be read ahead of their use, and
 * short enough that no thread waits long for another at the end of a phase. */
enum { MIN_PART_BYTES = 1 << 16, MAX_PART_BYTES = 1 << 20 };

/* State of one thread in a pass. */
typedef struct {
    const kernel_set *kernels;
    const model_weights *w;
    const kv_cache *cache;
    const shared_buffers *shared;
    const thread_buffers *local;
    int n_x;
    team_phase phase;
    input_rows input; /* of the next products */
} worker;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* ---- products ------------------------------------------------------------------------------- */

/* Convert `size` rows of x from row `m` on, (size, n), to one form. */
static void convert_rows(const worker *t, int form, const float *x, int64_t n, int m, int size)
{
    char *to = (char *)t->input.forms[form] + m * row_bytes(form, n);
    if (form == AS_FLOATS)
        memcpy(to, x, (size_t)(size * row_bytes(form, n)));
    else if (form == AS_BF16)
        t->kernels->round_to_bf16(x, size * n, (uint16_t *)to);
    else
        quantize_tile(t->kernels, x, 0, n, form == GROUPS_OF_32 ? 32 : 16, size, (uint8_t *)to);
}

/* Convert x (n_x, n), normalized if `norm` is given, to the forms that the `matrices` take. */
static void prepare_input(worker *t, const float *x, int64_t n, const float *norm,
                          const matrix *const *matrices, int n_matrices)
{
    const kernel_set *kernels = t->kernels;
    const int tile = max_tile(kernels), is_shared = t->n_x > tile;
    int is_used[N_FORMS] = {0};
    for (int i = 0; i < n_matrices; i++)
        is_used[form_for(kernels, matrices[i], t->n_x)] = 1;
    t->input = is_shared ? t->shared->input : t->local->input;
    if (!norm && is_used[AS_FLOATS]) { /* they are floats already */
        t->input.forms[AS_FLOATS] = (void *)x;
        is_used[AS_FLOATS] = 0;
    }
    const team_member me = is_shared ? t->phase.me : (team_member){0, 1};
    for (int start = me.index * tile; start < t->n_x; start += me.n_threads * tile)
        for (int m = start; m < t->n_x && m < start + tile;) {
            const int size = next_tile_size(kernels, t->n_x - m);
            const float *rows = x + m * n;
            if (norm) {
                for (int i = 0; i < size; i++)
                    kernels->rms_norm(rows + i * n, norm, n, t->w->norm_eps,
                                      t->local->normed + i * n);
                rows = t->local->normed;
            }
            for (int form = 0; form < N_FORMS; form++)
                if (is_used[form])
                    convert_rows(t, form, rows, n, m, size);
            m += size;
        }
    if (is_shared)
        wait_for_team();
}

/* Rows of a matrix that one thread computes together: whole panels, and a multiple of `unit`. */
INLINE int64_t step_rows(int64_t unit)
{
    int64_t step = PANEL;
    while (step % unit)
        step += PANEL;
    return step;
}

INLINE int64_t n_steps(const matrix *w, int64_t step) { return round_up(w->n_rows, step) / step; }

/* Take a part of the phase's `n` steps, each `step` rows of matrices like `w`; 0 if none is left. */
static int take_steps(const worker *t, int64_t n, const matrix *w, int64_t step, range *part)
{
    const int64_t bytes = step * weight_row_bytes(w);
    return take_part(&t->phase, n, 1 + MIN_PART_BYTES / bytes, 1 + MAX_PART_BYTES / bytes, part);
}

/* Rows of `w` in a part of the steps of several matrices, of which `w` is the first; removes its
 * steps from the part. */
static range take_rows(range *part, const matrix *w, int64_t step)
{
    const int64_t n = n_steps(w, step);
    const range rows = {min(min(part->start, n) * step, w->n_rows),
                        min(min(part->end, n) * step, w->n_rows)};
    *part = (range){max(part->start - n, 0), max(part->end - n, 0)};
    return rows;
}

INLINE range panels_of(range rows)
{
    return (range){rows.start / PANEL, (rows.end + PANEL - 1) / PANEL};
}

/* Multiply some rows of a matrix with its form of the input, into y (n_x, rows of w). */
static void multiply_rows(const worker *t, const matrix *w, range rows, float *y, int store_mode)
{
    const int form = form_for(t->kernels, w, t->n_x);
    const void *x = t->input.forms[form];
    if (rows.start >= rows.end)
        return;
    if (form == AS_FLOATS)
        t->kernels->multiply_floats(w, rows, x, t->n_x, y, store_mode);
    else if (form == AS_BF16)
        t->kernels->multiply_bf16(w, rows, x, t->n_x, y, store_mode);
    else
        multiply_panels(t->kernels, w, x, t->n_x, y, store_mode, panels_of(rows));
}

/* Add a matrix times the input to the residual stream. */
static void add_product(worker *t, const matrix *w)
{
    const int64_t step = step_rows(1), n = n_steps(w, step);
    for (range part; take_steps(t, n, w, step, &part);)
        multiply_rows(t, w, take_rows(&part, w, step), t->shared->x, ACCUMULATE);
    end_phase(&t->phase);
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
    const int64_t width = cache->n_heads * cache->head_dim;
    const int64_t kv_width = cache->n_kv_heads * cache->head_dim;
    const int64_t step = step_rows(store_unit(cache));
    const int64_t n = n_steps(&layer->wq, step) + 2 * n_steps(&layer->wk, step);
    prepare_input(t, b->x, t->w->dim, layer->attention_norm,
                  (const matrix *[]){&layer->wq, &layer->wk, &layer->wv}, 3);
    for (range part; take_steps(t, n, &layer->wq, step, &part);) {
        range rows = take_rows(&part, &layer->wq, step);
        multiply_rows(t, &layer->wq, rows, b->q, STORE_FLOAT);
        kernels->rotate(cache, b->q, t->n_x, width, rows, 1 / sqrtf((float)cache->head_dim));
        rows = take_rows(&part, &layer->wk, step);
        multiply_rows(t, &layer->wk, rows, b->k, STORE_FLOAT);
        kernels->rotate(cache, b->k, t->n_x, kv_width, rows, 1);
        kernels->store_rows(cache, cache->keys, cache->key_scales, l, b->k, t->n_x, rows);
        rows = take_rows(&part, &layer->wv, step);
        multiply_rows(t, &layer->wv, rows, b->v, STORE_FLOAT);
        kernels->store_rows(cache, cache->values, cache->value_scales, l, b->v, t->n_x, rows);
    }
    end_phase(&t->phase);
}

/* Add wo * attention to the residual stream. */
static void add_attention(worker *t, const layer_weights *layer)
{
    prepare_input(t, t->shared->attention, layer->wo.n_columns, NULL,
                  (const matrix *[]){&layer->wo}, 1);
    add_product(t, &layer->wo);
}

static void run_feed_forward(worker *t, const layer_weights *layer)
{
    const shared_buffers *b = t->shared;
    const int64_t hidden = t->w->hidden_dim;
    const int64_t step = step_rows(1), n = n_steps(&layer->w1, step);
    prepare_input(t, b->x, t->w->dim, layer->ffn_norm,
                  (const matrix *[]){&layer->w1, &layer->w3}, 2);
    for (range part; take_steps(t, n, &layer->w1, step, &part);) {
        const range rows = take_rows(&part, &layer->w1, step);
        multiply_rows(t, &layer->w3, rows, b->up, STORE_FLOAT);
        multiply_rows(t, &layer->w1, rows, b->gate, STORE_FLOAT);
        for (int m = 0; m < t->n_x; m++) {
            const int64_t at = m * hidden + rows.start;
            t->kernels->swiglu(b->gate + at, b->up + at, rows.end - rows.start);
        }
    }
    end_phase(&t->phase);
    prepare_input(t, b->gate, hidden, NULL, (const matrix *[]){&layer->w2}, 1);
    add_product(t, &layer->w2);
}

static void run_layer(worker *t, int64_t l, pass_record *record)
{
    const layer_weights *layer = t->w->layers + l;
    const double began = now();
    run_projections(t, l);
    const double projected = now();
    attend(t->kernels, t->cache, l, t->shared->q, t->n_x, t->shared->attention,
           &t->local->attention, &t->phase);
    const double attended = now();
    add_attention(t, layer);
    const double added = now();
    run_feed_forward(t, layer);
    if (t->phase.me.index == 0 && record) {
        record->projections += projected - began + added - attended;
        record->attention += attended - projected;
        record->feed_forward += now() - added;
    }
}

/* ---- logits --------------------------------------------------------------------------------- */

/* Compute some logits of a few normalized tokens (n, dim) from quantized activations.
 *
 * These cost more accuracy here than in any other product, and reading the matrix takes most of the
 * time anyway: so their errors are quantized to 8 bits too, as further rows. */
static void multiply_output_twice(const worker *t, int n, range rows, float *logits)
{
    const matrix *output = &t->w->output;
    const int64_t vocab_size = output->n_rows;
    float *products = t->shared->products;
    multiply_panels(t->kernels, output, t->local->input.forms[form_for(t->kernels, output, n)], 2 * n, products,
                    STORE_FLOAT, panels_of(rows));
    for (int m = 0; m < n; m++) {
        float *to = logits + m * vocab_size + rows.start;
        const float *product = products + 2 * m * vocab_size + rows.start;
        memcpy(to, product, sizeof(float) * (size_t)(rows.end - rows.start));
        t->kernels->add(to, product + vocab_size, rows.end - rows.start);
    }
}

/* Compute the logits (n_x, vocab_size) of the tokens with the residual stream x. */
static void run_output(worker *t, const float *x, int n_x, float *logits, pass_record *record)
{
    const double began = now();
    const kernel_set *kernels = t->kernels;
    const matrix *output = &t->w->output;
    const int64_t dim = t->w->dim, vocab_size = output->n_rows;
    const int64_t step = step_rows(1), n_parts = n_steps(output, step);
    const int is_packed = output->type == PACKED, rows_each = is_packed ? 2 : 1;
    for (int start = 0; start < n_x;) {
        const int n = next_tile_size(kernels, rows_each * (n_x - start)) / rows_each;
        float *normed = t->local->normed, *to = logits + start * vocab_size;
        for (int m = 0; m < n; m++) {
            float *row = normed + rows_each * m * dim;
            kernels->rms_norm(x + (start + m) * dim, t->w->norm, dim, t->w->norm_eps, row);
            if (is_packed)
                kernels->quantization_error(row, dim, output->layout.group, row + dim);
        }
        if (is_packed)
            quantize_tile(kernels, normed, 0, dim, output->layout.group, 2 * n,
                          t->local->input.forms[form_for(t->kernels, output, n)]);
        for (range part; take_steps(t, n_parts, output, step, &part);) {
            const range rows = take_rows(&part, output, step);
            if (is_packed)
                multiply_output_twice(t, n, rows, to);
            else
                kernels->multiply_floats(output, rows, normed, n, to, STORE_FLOAT);
        }
        end_phase(&t->phase);
        start += n;
    }
    if (t->phase.me.index == 0 && record)
        record->output += now() - began;
}

/* ---- the team ------------------------------------------------------------------------------- */

/* What forward() tells its threads. */
typedef struct {
    const kernel_set *kernels;
    const model_weights *w;
    const kv_cache *cache;
    const shared_buffers *shared;
    int n_x, n_logits;
    int64_t first, end;
    float *logits;
    attention_buffers attention; /* the shared ones */
    arena memory;                /* for the threads' buffers */
    pass_record *record;
} pass;

/* Compute one thread's part of a pass. */
static void run_pass(team_member me, void *argument)
{
    const pass *all = argument;
    thread_buffers local = {.attention = all->attention};
    arena memory = all->memory;
    for (int thread = 0; thread <= me.index; thread++)
        allocate_thread(all->kernels, all->w, all->cache, all->n_x, &memory, &local);
    worker t = {.kernels = all->kernels, .w = all->w, .cache = all->cache, .shared = all->shared,
                .local = &local, .n_x = all->n_x, .phase = {me, all->shared->shares, 1}};
    for (int64_t l = all->first; l < all->end; l++)
        run_layer(&t, l, all->record);
    if (me.index == 0 && all->record)
        all->record->n_threads = me.n_threads;
    const float *last = all->shared->x + (all->n_x - all->n_logits) * all->w->dim;
    if (all->logits)
        run_output(&t, last, all->n_logits, all->logits, all->record);
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
    allocate_shared(&kernels, w, cache, n_x, n_threads, &shared_memory, &shared, &local.attention);
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
    const kernel_set kernels = kernels_of(level);
    arena memory = {scratch, 0};
    shared_buffers shared = {.x = x};
    attention_buffers attention = {0};
    allocate_shared(&kernels, w, cache, n_x, n_threads, &memory, &shared, &attention);
    memset(shared.shares, 0, (size_t)n_threads * sizeof *shared.shares);
    pass all = {.kernels = &kernels, .w = w, .cache = cache, .shared = &shared, .n_x = n_x,
                .first = first, .end = end, .logits = logits, .n_logits = n_logits,
                .attention = attention, .memory = memory, .record = record};
    run_team(n_threads, run_pass, &all);
}
