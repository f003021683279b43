/* Working memory of a forward pass. */

#include "cpu.h"
#include "forward.h"

/* Columns of the widest quantized activations. */
static int64_t max_columns(const model_weights *w)
{
    return max(w->dim, max(w->hidden_dim, w->layers ? w->layers->wo.n_columns : 0));
}

static void allocate_input(const model_weights *w, int n_rows, arena *memory, input_rows *rows)
{
    for (int form = 0; form < N_FORMS; form++)
        rows->forms[form] =
            arena_alloc(memory, round_up(n_rows, MAX_TILE) * row_bytes(form, max_columns(w)));
}

void allocate_shared(const kernel_set *kernels, const model_weights *w, const token_batch *batch,
                     int n_threads, arena *memory, shared_buffers *shared,
                     attention_buffers *attention)
{
    shared->shares = arena_alloc(memory, n_threads * (int64_t)sizeof *shared->shares);
    const kv_cache *cache = batch->sequences;
    const int64_t heads = cache->n_heads * cache->head_dim;
    const int64_t kv_heads = cache->n_kv_heads * cache->head_dim;
    const int n_x = batch->n_x, n_rows = rows_per_logits(w) * batch->n_logits;
    shared->q = arena_floats(memory, n_x * heads);
    shared->k = arena_floats(memory, n_x * kv_heads);
    shared->v = arena_floats(memory, n_x * kv_heads);
    shared->attention = arena_floats(memory, n_x * heads);
    shared->gate = arena_floats(memory, n_x * w->hidden_dim);
    shared->up = arena_floats(memory, n_x * w->hidden_dim);
    allocate_input(w, n_x > max_tile(kernels) ? n_x : 0, memory, &shared->input);
    shared->normed = arena_floats(memory, n_rows * w->dim);
    if (w->output.type == PACKED) {
        const int64_t bytes = quantized_row_bytes(w->dim, w->output.layout.group);
        shared->quantized = arena_alloc(memory, n_rows * bytes);
    }
    allocate_shared_attention(cache, batch->n_sequences, memory, attention);
}

void allocate_thread(const kernel_set *kernels, const model_weights *w, const token_batch *batch,
                     arena *memory, thread_buffers *local)
{
    const int64_t tile = max_tile(kernels);
    local->normed = arena_floats(memory, tile * w->dim);
    allocate_input(w, (int)min(batch->n_x, tile), memory, &local->input);
    local->products = arena_alloc(
        memory, batch->n_x > batch->n_exact ? kernels->bf16_scratch_bytes : 0);
    allocate_thread_attention(batch->sequences, batch->n_sequences, memory, &local->attention);
}
