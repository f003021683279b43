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

/* Sequences that are neighbours in a pass and begin with the same rows in memory, `n_shared` splits:
 * they attend to these together, so that these are read once. */
typedef struct {
    const kv_cache *sequences;
    int n;
    int64_t n_shared;
} family;

/* Row of a sequence that is the first after one of its segments, new ones not counted. */
INLINE int64_t segment_end(const kv_cache *cache, int64_t segment)
{
    return segment + 1 < cache->n_segments ? cache->segments[segment + 1].start : cache->length;
}

/* Whole splits that two sequences begin with, in the same memory. */
static int64_t shared_splits(const kv_cache *a, const kv_cache *b, int64_t layer)
{
    int64_t rows = 0;
    for (int64_t i = 0; i < a->n_segments && i < b->n_segments; i++) {
        if (a->segments[i].keys[layer] != b->segments[i].keys[layer] ||
            a->segments[i].start != b->segments[i].start)
            break;
        rows = min(segment_end(a, i), segment_end(b, i));
        if (segment_end(a, i) != segment_end(b, i))
            break;
    }
    return rows / split_rows(a);
}

/* Find the family that begins with the first of some sequences: those that share as much as the
 * second. */
static family find_family(const kv_cache *sequences, int n_sequences, int64_t layer)
{
    family found = {sequences, 1, 0};
    if (!is_exact(sequences))
        return found;
    for (; found.n < n_sequences && is_exact(sequences + found.n); found.n++) {
        const int64_t n_shared = shared_splits(sequences, sequences + found.n, layer);
        if (n_shared == 0 || (found.n > 1 && n_shared < found.n_shared))
            break;
        if (found.n == 1)
            found.n_shared = n_shared;
    }
    return found;
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

/* Items of work of one sequence of a family: blocks, or splits that are not shared; for each head of
 * keys. */
INLINE int64_t own_items(const kv_cache *cache, int64_t n_shared)
{
    return cache->n_kv_heads * (is_exact(cache) ? n_splits(cache) - n_shared : n_blocks(cache));
}

/* Items of work of a family: the shared ones come first. */
static int64_t n_items(const family *f)
{
    int64_t n = f->n_shared * f->sequences->n_kv_heads;
    for (int i = 0; i < f->n; i++)
        n += own_items(f->sequences + i, f->n_shared);
    return n;
}

/* Where a pass has the queries and the partial results of a sequence. */
typedef struct {
    const kv_cache *sequence;
    int64_t row; /* of its first new token */
    float *partials;
} attention_place;

INLINE void go_to_next(attention_place *at)
{
    at->row += at->sequence->n_new;
    at->partials += sequence_partials(at->sequence);
    at->sequence++;
}

/* Do one of the items of a family, whose first sequence is `at`. */
static void attend_item(const kernel_set *kernels, const family *f, attention_place at,
                        int64_t item, int64_t layer, const float *q, float *out,
                        const attention_buffers *buffers)
{
    const int64_t width = at.sequence->n_heads * at.sequence->head_dim;
    const int64_t n_shared = f->n_shared * at.sequence->n_kv_heads;
    split_item split = {at.sequence, f->n, item / max(f->n_shared, 1), item % max(f->n_shared, 1)};
    if (item >= n_shared) {
        item -= n_shared;
        for (; item >= own_items(at.sequence, f->n_shared); go_to_next(&at))
            item -= own_items(at.sequence, f->n_shared);
        if (!is_exact(at.sequence)) {
            attend_block(kernels, at.sequence, layer, q + at.row * width, item,
                         out + at.row * width, &buffers->prefill);
            return;
        }
        const int64_t n_own = n_splits(at.sequence) - f->n_shared;
        split = (split_item){at.sequence, 1, item / n_own, f->n_shared + item % n_own};
    }
    kernels->attend_to_split(&split, layer, q + at.row * width, &buffers->decode, at.partials);
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
    int64_t total = 0, n_exact = 0;
    for (int i = 0; i < n_sequences; i++)
        n_exact += is_exact(sequences + i) ? sequences[i].n_new : 0;
    for (int i = 0; i < n_sequences;) {
        const family f = find_family(sequences + i, n_sequences - i, layer);
        total += n_items(&f);
        i += f.n;
    }
    if (n_exact)
        memset(buffers->decode.queries, 0,
               sizeof(float) * (size_t)(QUERY_BATCH * padded_head(sequences)));
    /* Blocks take long, and splits of one head are neighbours in memory. */
    const int64_t largest = is_exact(sequences + n_sequences - 1) ? n_splits(sequences) : 1;
    for (range items; take_part(phase, total, 1, largest, &items);) {
        attention_place at = {sequences, 0, buffers->partials};
        family f = find_family(sequences, n_sequences, layer);
        int64_t first = 0; /* item of this family */
        for (int64_t item = items.start; item < items.end; item++) {
            while (item - first >= n_items(&f)) {
                first += n_items(&f);
                for (int i = 0; i < f.n; i++)
                    go_to_next(&at);
                f = find_family(at.sequence, n_sequences - (int)(at.sequence - sequences), layer);
            }
            attend_item(kernels, &f, at, item - first, layer, q, out, buffers);
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
