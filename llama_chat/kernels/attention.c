/* Grouped-query attention of new tokens to a cache.
 *
 * Decode attention, of a few tokens, is limited by reading the cache. The cache is cut into splits,
 * which are distributed over the threads; each split is read once for all queries of its head, and
 * the partial results are merged (Flash-Decoding, Dao et al. 2023,
 * https://crfm.stanford.edu/2023/10/12/flashdecoding.html). Splits begin at fixed rows, whatever
 * the number of tokens or threads, so that results of up to MAX_EXACT_BATCH tokens equal, bit for
 * bit, those of passes over one token.
 *
 * Prefill attention, of more tokens, is limited by arithmetic: blocks of queries are distributed
 * over the threads, and multiplied with blocks of keys.
 */

#include "attention.h"

#include "kernel_set.h"

/* ---- decode --------------------------------------------------------------------------------- */

/* Rows of a split: few if there are few heads, so that every thread has enough work. */
INLINE int64_t split_rows(const kv_cache *cache) { return cache->n_kv_heads < 8 ? 64 : MAX_SPLIT; }

INLINE int64_t n_splits(const kv_cache *cache, int n_x)
{
    return round_up(cache->length + n_x, split_rows(cache)) / split_rows(cache);
}

static void attend_splits(const kernel_set *kernels, const kv_cache *cache, int64_t layer,
                          const float *q, int n_x, float *out, const attention_buffers *buffers,
                          team_phase *phase)
{
    const int64_t group = queries_per_kv_head(cache), splits = n_splits(cache, n_x);
    const int64_t split_stride = n_x * group * partial_floats(cache);
    const int64_t total = cache->length + n_x, step = split_rows(cache);
    const decode_buffers *local = &buffers->decode;
    memset(local->queries, 0, sizeof(float) * (size_t)(QUERY_BATCH * padded_head(cache)));
    for (range items; take_part(phase, cache->n_kv_heads * splits, 1, splits, &items);)
        for (int64_t item = items.start; item < items.end; item++) {
            int64_t first = item % splits * step;
            range rows = {first, first + step < total ? first + step : total};
            kernels->attend_to_split(cache, layer, q, n_x, item / splits, rows, local,
                                     buffers->partials + item * split_stride);
        }
    end_phase(phase);
    range queries = share_of(n_x * cache->n_heads, phase->me);
    for (int64_t i = queries.start; i < queries.end; i++) {
        int64_t m = i / cache->n_heads, head = i % cache->n_heads;
        const float *first = buffers->partials + head / group * splits * split_stride +
                             (m * group + head % group) * partial_floats(cache);
        kernels->merge_partials(first, splits, split_stride, cache->head_dim,
                                out + i * cache->head_dim);
    }
    end_phase(phase);
}

/* ---- prefill -------------------------------------------------------------------------------- */

/* Tokens in a block of queries of one head of keys. */
INLINE int64_t block_tokens(const kv_cache *cache)
{
    int64_t tokens = QUERY_BLOCK * cache->n_kv_heads / cache->n_heads;
    return tokens > 1 ? tokens : 1;
}

static void attend_blocks(const kernel_set *kernels, const kv_cache *cache, int64_t layer,
                          const float *q, int n_x, float *out, const prefill_buffers *buffers,
                          team_phase *phase)
{
    const int64_t step = block_tokens(cache), blocks = round_up(n_x, step) / step;
    for (range items; take_part(phase, cache->n_kv_heads * blocks, 1, 1, &items);) {
        /* The last tokens, which attend to the most keys, go first. */
        int64_t first = (blocks - 1 - items.start / cache->n_kv_heads) * step;
        range tokens = {first, first + step < n_x ? first + step : n_x};
        kernels->attend_block(cache, layer, q, items.start % cache->n_kv_heads, tokens, out,
                              buffers);
    }
    end_phase(phase);
}

/* ---- both ----------------------------------------------------------------------------------- */

void allocate_shared_attention(const kv_cache *cache, int n_x, arena *memory,
                               attention_buffers *buffers)
{
    const int64_t n_partials = n_x * cache->n_heads * n_splits(cache, n_x);
    if (n_x <= MAX_EXACT_BATCH)
        buffers->partials = arena_floats(memory, n_partials * partial_floats(cache));
}

void allocate_thread_attention(const kv_cache *cache, int n_x, arena *memory,
                               attention_buffers *buffers)
{
    const int64_t width = padded_head(cache);
    if (n_x <= MAX_EXACT_BATCH) {
        decode_buffers *b = &buffers->decode;
        b->queries = arena_floats(memory, QUERY_BATCH * width);
        b->scores = arena_floats(memory, QUERY_BATCH * MAX_SPLIT);
        b->rows = arena_floats(memory, width == cache->head_dim ? 0 : 2 * MAX_SPLIT * width);
        return;
    }
    prefill_buffers *b = &buffers->prefill;
    const int64_t n_rows = round_up(block_tokens(cache) * queries_per_kv_head(cache), TILE_ROWS);
    b->queries = arena_floats(memory, n_rows * width);
    b->sums = arena_floats(memory, n_rows * width);
    b->scores = arena_floats(memory, n_rows * KEY_BLOCK);
    b->keys = arena_floats(memory, width * KEY_BLOCK);
    b->values = arena_floats(memory, KEY_BLOCK * width);
    b->max = arena_floats(memory, n_rows);
    b->total = arena_floats(memory, n_rows);
    b->row = arena_floats(memory, width);
}

void attend(const kernel_set *kernels, const kv_cache *cache, int64_t layer, const float *q,
            int n_x, float *out, const attention_buffers *buffers, team_phase *phase)
{
    if (n_x <= MAX_EXACT_BATCH)
        attend_splits(kernels, cache, layer, q, n_x, out, buffers, phase);
    else
        attend_blocks(kernels, cache, layer, q, n_x, out, &buffers->prefill, phase);
}
