/* Grouped-query attention of new tokens to a cache.
 *
 * Decode attention, of a few tokens, is limited by reading the cache. The cache is cut into splits,
 * which are distributed over the threads; each split is read once for all queries of its head, and
 * the partial results are merged (Flash-Decoding, Dao et al. 2023,
 * https://crfm.stanford.edu/2023/10/12/flashdecoding.html). Splits begin at fixed rows, whatever
 * the number of tokens, sequences or threads, so that results of up to MAX_EXACT_BATCH tokens of a
 * sequence equal, bit for bit, those of passes over one token. Sequences of so few tokens come
 * first in a pass.
 *
 * Prefill attention, of more tokens, is limited by arithmetic: blocks of queries are distributed
 * over the threads, and multiplied with blocks of keys.
 */

#include "attention.h"

#include "kernel_set.h"

/* ---- decode --------------------------------------------------------------------------------- */

/* Rows of a split: few if there are few heads, so that every thread has enough work. */
INLINE int64_t split_rows(const kv_cache *cache) { return cache->n_kv_heads < 8 ? 64 : MAX_SPLIT; }

INLINE int64_t n_splits(const kv_cache *cache)
{
    return round_up(cache->length + cache->n_new, split_rows(cache)) / split_rows(cache);
}

/* Floats of the partial results of all queries of a head of keys, for one split. */
INLINE int64_t split_stride(const kv_cache *cache)
{
    return cache->n_new * queries_per_kv_head(cache) * partial_floats(cache);
}

/* Floats of all partial results of a sequence. */
INLINE int64_t sequence_partials(const kv_cache *cache)
{
    return is_exact(cache) ? cache->n_kv_heads * n_splits(cache) * split_stride(cache) : 0;
}

static void attend_split(const kernel_set *kernels, const kv_cache *cache, int64_t layer,
                         const float *q, int64_t item, const decode_buffers *buffers,
                         float *partials)
{
    const int64_t splits = n_splits(cache), step = split_rows(cache), first = item % splits * step;
    const range rows = {first, min(first + step, cache->length + cache->n_new)};
    kernels->attend_to_split(cache, layer, q, item / splits, rows, buffers,
                             partials + item * split_stride(cache));
}

/* Merge the partial results of one query head of one token; `i` counts them. */
static void merge_splits(const kernel_set *kernels, const kv_cache *cache, int64_t i,
                         const float *partials, float *out)
{
    const int64_t group = queries_per_kv_head(cache), splits = n_splits(cache);
    const int64_t m = i / cache->n_heads, head = i % cache->n_heads, stride = split_stride(cache);
    const float *first = partials + head / group * splits * stride +
                         (m * group + head % group) * partial_floats(cache);
    kernels->merge_partials(first, splits, stride, cache->head_dim, out + i * cache->head_dim);
}

/* ---- prefill -------------------------------------------------------------------------------- */

/* Tokens in a block of queries of one head of keys. */
INLINE int64_t block_tokens(const kv_cache *cache)
{
    return max(QUERY_BLOCK * cache->n_kv_heads / cache->n_heads, 1);
}

INLINE int64_t n_blocks(const kv_cache *cache)
{
    return round_up(cache->n_new, block_tokens(cache)) / block_tokens(cache);
}

static void attend_block(const kernel_set *kernels, const kv_cache *cache, int64_t layer,
                         const float *q, int64_t item, float *out, const prefill_buffers *buffers)
{
    /* The last tokens, which attend to the most keys, go first. */
    const int64_t step = block_tokens(cache);
    const int64_t first = (n_blocks(cache) - 1 - item / cache->n_kv_heads) * step;
    const range tokens = {first, min(first + step, cache->n_new)};
    kernels->attend_block(cache, layer, q, item % cache->n_kv_heads, tokens, out, buffers);
}

/* ---- both ----------------------------------------------------------------------------------- */

/* Items of work of a sequence: splits or blocks, for each head of keys. */
INLINE int64_t n_items(const kv_cache *cache)
{
    return cache->n_kv_heads * (is_exact(cache) ? n_splits(cache) : n_blocks(cache));
}

void allocate_shared_attention(const kv_cache *sequences, int n_sequences, arena *memory,
                               attention_buffers *buffers)
{
    int64_t n = 0;
    for (int i = 0; i < n_sequences; i++)
        n += sequence_partials(sequences + i);
    buffers->partials = arena_floats(memory, n);
}

void allocate_thread_attention(const kv_cache *sequences, int n_sequences, arena *memory,
                               attention_buffers *buffers)
{
    const int64_t width = padded_head(sequences), head_dim = sequences->head_dim;
    decode_buffers *d = &buffers->decode;
    if (is_exact(sequences)) { /* the first one, if any is */
        d->queries = arena_floats(memory, QUERY_BATCH * width);
        d->scores = arena_floats(memory, QUERY_BATCH * MAX_SPLIT);
        d->rows = arena_floats(memory, width == head_dim ? 0 : 2 * MAX_SPLIT * width);
    }
    if (is_exact(sequences + n_sequences - 1))
        return;
    prefill_buffers *p = &buffers->prefill;
    const int64_t n_queries = block_tokens(sequences) * queries_per_kv_head(sequences);
    const int64_t n_rows = round_up(n_queries, TILE_ROWS);
    p->queries = arena_floats(memory, n_rows * width);
    p->sums = arena_floats(memory, n_rows * width);
    p->scores = arena_floats(memory, n_rows * KEY_BLOCK);
    p->keys = arena_floats(memory, width * KEY_BLOCK);
    p->values = arena_floats(memory, KEY_BLOCK * width);
    p->max = arena_floats(memory, n_rows);
    p->total = arena_floats(memory, n_rows);
    p->row = arena_floats(memory, width);
}

void attend(const kernel_set *kernels, const kv_cache *sequences, int n_sequences, int64_t layer,
            const float *q, float *out, const attention_buffers *buffers, team_phase *phase)
{
    const int64_t width = sequences->n_heads * sequences->head_dim;
    int64_t total = 0, n_exact = 0;
    for (int i = 0; i < n_sequences; i++) {
        total += n_items(sequences + i);
        n_exact += is_exact(sequences + i) ? sequences[i].n_new : 0;
    }
    if (n_exact)
        memset(buffers->decode.queries, 0,
               sizeof(float) * (size_t)(QUERY_BATCH * padded_head(sequences)));
    /* Blocks take long, and splits of one head are neighbours in memory. */
    const int64_t largest = is_exact(sequences + n_sequences - 1) ? n_splits(sequences) : 1;
    for (range items; take_part(phase, total, 1, largest, &items);) {
        const kv_cache *cache = sequences;
        float *partials = buffers->partials;
        int64_t row = 0, first = 0; /* of the new tokens, and of the items of this sequence */
        for (int64_t item = items.start; item < items.end; item++) {
            for (; item - first >= n_items(cache); cache++) {
                first += n_items(cache);
                row += cache->n_new;
                partials += sequence_partials(cache);
            }
            if (is_exact(cache))
                attend_split(kernels, cache, layer, q + row * width, item - first, &buffers->decode,
                             partials);
            else
                attend_block(kernels, cache, layer, q + row * width, item - first,
                             out + row * width, &buffers->prefill);
        }
    }
    end_phase(phase);
    if (!n_exact)
        return;
    const kv_cache *cache = sequences;
    const float *partials = buffers->partials;
    const range queries = share_of(n_exact * sequences->n_heads, phase->me);
    int64_t first = 0; /* of the queries of this sequence */
    for (int64_t i = queries.start; i < queries.end; i++) {
        for (; i - first >= cache->n_new * cache->n_heads; cache++) {
            first += cache->n_new * cache->n_heads;
            partials += sequence_partials(cache);
        }
        merge_splits(kernels, cache, i - first, partials, out + first * cache->head_dim);
    }
    end_phase(phase);
}
