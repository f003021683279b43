/* A forward pass of a Llama model.
 *
 * It computes the same as model/transformer.py, with activations in float32, in one parallel region
 * for all layers. The threads divide the rows of every matrix, along with the operations that need
 * no other rows (work_shares.h), and wait for each other where one needs the results of others.
 *
 * For a few tokens, every thread normalizes and converts all activations by itself, which takes
 * less time than waiting for another thread. For many, the threads share that work, too.
 */

#include "worker.h"

/* ---- a layer -------------------------------------------------------------------------------- */

/* Columns of keys or values that one thread must compute together: a whole head if its numbers
 * share a scale. */
static int64_t store_unit(const kv_cache *cache)
{
    return cache->kind == INT8 ? cache->head_dim : 1;
}

/* Rotate some columns of x (n_x, width) by the angles of their tokens, times `scale`. */
static void rotate_columns(const worker *t, float *x, int64_t width, range columns, float scale)
{
    const kv_cache *cache = t->batch->sequences;
    for (int m = 0; m < t->n_x; m += cache++->n_new)
        t->kernels->rotate(cache, x + m * width, width, columns, scale);
}

/* Store some columns of keys or of values (n_x, width) in the caches of their sequences. */
static void store_columns(const worker *t, int is_keys, int64_t layer, const float *x,
                          int64_t width, range columns)
{
    const kv_cache *cache = t->batch->sequences;
    for (int m = 0; m < t->n_x; m += cache++->n_new) {
        const cache_segment *own = cache->segments + cache->n_segments - 1;
        t->kernels->store_rows(cache, is_keys ? own->keys : own->values,
                               is_keys ? own->key_scales : own->value_scales, layer, x + m * width,
                               columns);
    }
}

/* Compute queries, scaled by 1 / sqrt(head_dim), keys and values of the new tokens. */
static void run_projections(worker *t, int64_t l)
{
    const layer_weights *layer = t->w->layers + l;
    const shared_buffers *b = t->shared;
    const kv_cache *cache = t->batch->sequences;
    const int64_t width = cache->n_heads * cache->head_dim;
    const int64_t kv_width = cache->n_kv_heads * cache->head_dim;
    const int64_t step = step_rows(t, store_unit(cache));
    const int64_t n = n_steps(&layer->wq, step) + 2 * n_steps(&layer->wk, step);
    prepare_input(t, b->x, t->w->dim, layer->attention_norm,
                  (const matrix *[]){&layer->wq, &layer->wk, &layer->wv}, 3);
    for (range part; take_steps(t, n, &layer->wq, step, &part);) {
        range rows = take_rows(&part, &layer->wq, step);
        multiply_rows(t, &layer->wq, rows, b->q, STORE_FLOAT);
        rotate_columns(t, b->q, width, rows, 1 / sqrtf((float)cache->head_dim));
        rows = take_rows(&part, &layer->wk, step);
        multiply_rows(t, &layer->wk, rows, b->k, STORE_FLOAT);
        rotate_columns(t, b->k, kv_width, rows, 1);
        store_columns(t, 1, l, b->k, kv_width, rows);
        rows = take_rows(&part, &layer->wv, step);
        multiply_rows(t, &layer->wv, rows, b->v, STORE_FLOAT);
        store_columns(t, 0, l, b->v, kv_width, rows);
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
    const int64_t step = step_rows(t, 1), n = n_steps(&layer->w1, step);
    prepare_input(t, b->x, t->w->dim, layer->ffn_norm,
                  (const matrix *[]){&layer->w1, &layer->w3}, 2);
    for (range part; take_steps(t, n, &layer->w1, step, &part);)
        multiply_gated(t, layer, take_rows(&part, &layer->w1, step));
    end_phase(&t->phase);
    prepare_gated(t, layer);
    add_product(t, &layer->w2);
}

static void run_layer(worker *t, int64_t l, pass_record *record)
{
    const layer_weights *layer = t->w->layers + l;
    const double began = now();
    run_projections(t, l);
    const double projected = now();
    attend(t->kernels, t->batch->sequences, t->batch->n_sequences, l, t->shared->q,
           t->shared->attention, &t->local->attention, &t->phase);
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

/* ---- the team ------------------------------------------------------------------------------- */

/* What forward() tells its threads. */
typedef struct {
    const kernel_set *kernels;
    const model_weights *w;
    const token_batch *batch;
    const shared_buffers *shared;
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
        allocate_thread(all->kernels, all->w, all->batch, &memory, &local);
    worker t = {.kernels = all->kernels, .w = all->w, .batch = all->batch, .shared = all->shared,
                .local = &local, .n_x = all->batch->n_x, .phase = {me, all->shared->shares, 1}};
    for (int64_t l = all->first; l < all->end; l++)
        run_layer(&t, l, all->record);
    if (me.index == 0 && all->record)
        all->record->n_threads = me.n_threads;
    if (all->batch->n_logits)
        run_output(&t, all->logits, all->record);
}

/* ---- called from Python --------------------------------------------------------------------- */

static token_batch batch_of(const kv_cache *sequences, int n_sequences, const int32_t *logit_rows,
                            int n_logits)
{
    token_batch batch = {sequences, n_sequences, 0, 0, logit_rows, n_logits};
    for (int i = 0; i < n_sequences; i++) {
        batch.n_x += sequences[i].n_new;
        batch.n_exact += is_exact(sequences + i) ? sequences[i].n_new : 0;
    }
    return batch;
}

/* Bytes of scratch memory that forward() needs for a team of up to `n_threads`. */
EXPORT int64_t forward_scratch_bytes(const model_weights *w, const kv_cache *sequences,
                                     int n_sequences, int n_logits, int level, int n_threads)
{
    const kernel_set kernels = kernels_of(level);
    const token_batch batch = batch_of(sequences, n_sequences, NULL, n_logits);
    arena shared_memory = {0}, thread_memory = {0};
    shared_buffers shared;
    thread_buffers local;
    allocate_shared(&kernels, w, &batch, n_threads, &shared_memory, &shared, &local.attention);
    allocate_thread(&kernels, w, &batch, &thread_memory, &local);
    return shared_memory.used + thread_memory.used * n_threads;
}

/* Run the new tokens of some sequences through the layers `first` to `end`, exclusive: x (tokens,
 * dim) holds the input of the first layer, and afterwards the output of the last. Sequences of up
 * to MAX_EXACT_BATCH new tokens come first.
 *
 * Logits (n_logits, vocab_size) of the tokens `logit_rows` are computed from the output. `scratch`
 * has forward_scratch_bytes() bytes; `record` may be NULL, and is added to. Uses `n_threads`
 * threads, or fewer if the system provides fewer, and not the default of OpenMP, which depends on
 * the calling thread.
 */
EXPORT void forward(const model_weights *w, const kv_cache *sequences, int n_sequences, float *x,
                    int64_t first, int64_t end, float *logits, const int32_t *logit_rows,
                    int n_logits, char *scratch, pass_record *record, int level, int n_threads)
{
    const kernel_set kernels = kernels_of(level);
    const token_batch batch = batch_of(sequences, n_sequences, logit_rows, n_logits);
    arena memory = {scratch, 0};
    shared_buffers shared = {.x = x};
    attention_buffers attention = {0};
    allocate_shared(&kernels, w, &batch, n_threads, &memory, &shared, &attention);
    memset(shared.shares, 0, (size_t)n_threads * sizeof *shared.shares);
    pass all = {.kernels = &kernels, .w = w, .batch = &batch, .shared = &shared, .first = first,
                .end = end, .logits = logits, .attention = attention, .memory = memory,
                .record = record};
    run_team(n_threads, run_pass, &all);
}
