/* Attention of a few queries to one split of the cache, for any instruction set; see
 * attention.c. */

#ifndef DECODE_ATTENTION_H
#define DECODE_ATTENTION_H

#include "attention_vectors.h"
#include "transposed_keys.h"

/* Prefetch distance in bytes from a row of keys. */
enum { KEYS_AHEAD = 2048 };

/* Compute the scores (n_queries, MAX_SPLIT) of queries of `width` numbers for `n` rows of keys from
 * row `first` on; n_queries * n <= N_SUMS.
 *
 * A row is widened once for all queries, and a query is loaded once for all rows. The loops over
 * them are unrolled explicitly: otherwise GCC keeps the sums in memory. Later keys are prefetched
 * meanwhile, and the values of these rows, which are needed next: a split is too short for the
 * hardware prefetcher.
 */
INLINE void multiply_keys(const float *const *queries, int n_queries, const head_rows *rows,
                          int64_t first, int n, int64_t width, float *scores, int kind)
{
    const int64_t bytes = rows->row_bytes, start = first * bytes;
    const int64_t step_bytes = n * LANES * kind_bytes(kind);
    vector sums[N_SUMS] = {0};
    if (width < LANES)
        __builtin_unreachable(); /* so that GCC does not fill them for that case */
    for (int64_t at = 0; at < width; at += LANES) {
        for (int64_t i = 0; i < step_bytes && !rows->is_copy; i += CACHE_LINE) {
            const int64_t line = start + at / LANES * step_bytes + i;
            __builtin_prefetch(rows->keys + KEYS_AHEAD + line);
            __builtin_prefetch(rows->values + line);
        }
        UNROLL(16)
        for (int j = 0; j < n; j++) {
            const vector numbers = load(rows->keys + start + j * bytes, at, kind);
            UNROLL(4)
            for (int i = 0; i < n_queries; i++)
                sums[i * n + j] += *(const vector *)(queries[i] + at) * numbers;
        }
    }
    vector totals[N_SUMS / LANES];
    UNROLL(4)
    for (int i = 0; i < N_SUMS / LANES; i++)
        totals[i] = lane_sums(sums + i * LANES);
    for (int i = 0; i < n_queries; i++)
        memcpy(scores + i * MAX_SPLIT + first, (const float *)totals + i * n,
               (size_t)n * sizeof(float));
}

/* Compute scores (n_queries, MAX_SPLIT) = queries of `width` numbers * keys. */
INLINE void score_rows(const float *const *queries, int n_queries, const head_rows *rows,
                       float *scores, int64_t width, int kind)
{
    const int at_once = N_SUMS / n_queries;
    for (int64_t r = 0; r < rows->n && rows->n < at_once; r++)
        multiply_keys(queries, n_queries, rows, r, 1, width, scores, kind);
    /* The last ones may be multiplied twice. */
    for (int64_t r = 0; r < rows->n && rows->n >= at_once; r += at_once)
        multiply_keys(queries, n_queries, rows, min(r, rows->n - at_once), at_once, width, scores,
                      kind);
    for (int i = 0; i < n_queries && kind == INT8; i++)
        for (int64_t r = 0; r < rows->n; r++)
            scores[i * MAX_SPLIT + r] *= rows->key_scales[r];
}

/* ---- values, and softmax ---------------------------------------------------------------------- */

/* Compute to[i] (width), for each query, = the sums of values, weighted by (n_queries, MAX_SPLIT), or
 * add to it; only `n_vectors` vectors of their columns, from column `first` on. */
INLINE void sum_numbers(const float *weights, int n_queries, const head_rows *rows,
                        float *const *to, int64_t first, int n_vectors, int adds, int kind)
{
    vector sums[QUERY_BATCH][8] = {0};
    if (rows->n < 1)
        __builtin_unreachable();
    if (adds)
        for (int i = 0; i < n_queries; i++)
            for (int j = 0; j < n_vectors; j++)
                sums[i][j] = *(const vector *)(to[i] + first + j * LANES);
    for (int64_t r = 0; r < rows->n; r++) {
        const char *row = rows->values + r * rows->row_bytes;
        float scale = kind == INT8 ? rows->value_scales[r] : 1;
        UNROLL(8)
        for (int j = 0; j < n_vectors; j++) {
            vector numbers = load(row, first + j * LANES, kind);
            UNROLL(8)
            for (int i = 0; i < n_queries; i++)
                sums[i][j] += weights[i * MAX_SPLIT + r] * scale * numbers;
        }
    }
    for (int i = 0; i < n_queries; i++)
        for (int j = 0; j < n_vectors; j++)
            *(vector *)(to[i] + first + j * LANES) = sums[i][j];
}

/* Compute the same for all `width` columns. */
INLINE void sum_rows(const float *weights, int n_queries, const head_rows *rows, float *const *to,
                     int64_t width, int adds, int kind)
{
    const int n_vectors = n_queries == 1 ? 8 : N_SUMS / QUERY_BATCH;
    int64_t at = 0;
    for (; at + n_vectors * LANES <= width; at += n_vectors * LANES)
        sum_numbers(weights, n_queries, rows, to, at, n_vectors, adds, kind);
    for (; n_vectors > 4 && at + 4 * LANES <= width; at += 4 * LANES)
        sum_numbers(weights, n_queries, rows, to, at, 4, adds, kind);
    for (; at < width; at += LANES)
        sum_numbers(weights, n_queries, rows, to, at, 1, adds, kind);
}

/* Turn the first `n_visible` of `n_padded` scores into exponentials, relative to their maximum, and
 * all others into 0; partial = (maximum, sum of exponentials). */
INLINE void softmax_partial(float *scores, int64_t n_visible, int64_t n_padded, float *partial)
{
    float max = -INFINITY;
    vector sums = {0}; /* explicit: the order of a reduction might depend on n_padded */
    for (int64_t r = n_visible; r < n_padded; r++)
        scores[r] = -INFINITY;
#pragma omp simd reduction(max : max)
    for (int64_t r = 0; r < n_padded; r++)
        max = scores[r] > max ? scores[r] : max;
    for (int64_t r = 0; r < n_padded; r++)
        scores[r] = scores[r] == -INFINITY ? 0 : fast_exp(scores[r] - max);
    for (int64_t r = 0; r < n_padded; r += LANES)
        sums += *(const vector *)(scores + r);
    partial[0] = max;
    partial[1] = horizontal_sum(sums);
}

/* ---- splits ----------------------------------------------------------------------------------- */

/* A split of a head: its rows in the cache, or a copy of them as floats, padded with zeros. */
typedef struct {
    const kv_cache *cache;
    int64_t layer, head;
    range rows;
    const float *copy; /* keys, and from row MAX_SPLIT on values; or NULL */
    int is_transposed; /* blocks of keys in the copy */
} head_split;

/* Find the rows of a split from row `at` of it on, as many of `n` as lie in one piece of memory. */
INLINE head_rows rows_of_split(const head_split *split, int64_t at, int64_t n, int kind)
{
    const int64_t width = padded_head(split->cache), first = split->rows.start;
    if (!split->copy)
        return rows_of_head(split->cache, split->layer, split->head,
                            (range){first + at, first + n}, kind);
    const float *keys = split->copy + at * width;
    return (head_rows){.keys = (const char *)keys,
                       .values = (const char *)(keys + MAX_SPLIT * width),
                       .n = n - at,
                       .row_bytes = width * (int64_t)sizeof(float),
                       .is_copy = 1};
}

/* Copy the rows of a split as floats, padded with zeros; and transpose the keys, if `transposes`. */
INLINE void copy_split(head_split *split, float *copy, int transposes, int kind)
{
    const int64_t n = split->cache->head_dim, width = padded_head(split->cache);
    const int64_t n_rows = split->rows.end - split->rows.start;
    float *values = copy + MAX_SPLIT * width;
    for (int64_t at = 0; at < n_rows;) {
        const head_rows rows = rows_of_split(split, at, n_rows, kind);
        for (int64_t r = 0; r < rows.n; r++, at++) {
            const int64_t bytes = r * rows.row_bytes;
            load_padded(rows.keys + bytes, rows.key_scales + r, n, width, kind, copy + at * width);
            load_padded(rows.values + bytes, rows.value_scales + r, n, width, kind,
                        values + at * width);
        }
    }
    const int64_t n_padding = round_up(n_rows, LANES) - n_rows;
    if (transposes && n_padding)
        memset(copy + n_rows * width, 0, sizeof(float) * (size_t)(n_padding * width));
    for (int64_t r = 0; r < n_rows && transposes; r += LANES)
        transpose_block(copy + r * width, width);
    split->copy = copy;
    split->is_transposed = transposes;
}

/* Queries that are multiplied with rows at a time. */
typedef struct {
    const float *queries[QUERY_BATCH];
    int64_t n_visible[QUERY_BATCH]; /* rows of the split that they attend to; the most, for the last */
    float *partials[QUERY_BATCH];
} query_batch;

/* Attend with `n_queries`. */
INLINE void attend_batch(const decode_buffers *buffers, int n_queries, const head_split *split,
                         const query_batch *batch, int kind)
{
    const int64_t width = padded_head(split->cache), n = batch->n_visible[n_queries - 1];
    float *sums[QUERY_BATCH];
    const int is_transposed = kind == FLOAT32 && split->is_transposed; /* copies are of floats */
    if (is_transposed)
        score_blocks(batch->queries, n_queries, split->copy, n, width, buffers->scores);
    for (int64_t at = 0; at < n && !is_transposed;) {
        const head_rows rows = rows_of_split(split, at, n, kind);
        score_rows(batch->queries, n_queries, &rows, buffers->scores + at, width, kind);
        at += rows.n;
    }
    for (int i = 0; i < n_queries; i++) {
        softmax_partial(buffers->scores + i * MAX_SPLIT, batch->n_visible[i], round_up(n, PADDING),
                        batch->partials[i]);
        sums[i] = batch->partials[i] + 2;
    }
    for (int64_t at = 0; at < n;) {
        const head_rows rows = rows_of_split(split, at, n, kind);
        sum_rows(buffers->scores + at, n_queries, &rows, sums, width, at > 0, kind);
        at += rows.n;
    }
}

/* Attend with 1, 3 or QUERY_BATCH queries, for which it is compiled: the usual groups of heads. */
INLINE void attend_any_batch(const decode_buffers *buffers, int64_t n_queries,
                             const head_split *split, const query_batch *batch, int kind)
{
    if (n_queries == 1)
        attend_batch(buffers, 1, split, batch, kind);
    else if (n_queries == 3)
        attend_batch(buffers, 3, split, batch, kind);
    else
        attend_batch(buffers, QUERY_BATCH, split, batch, kind);
}

/* Attend to rows of floats: those of the cache, or a copy of rows of any type. It is compiled once
 * for all of them. */
static NOINLINE void attend_batch_of_floats(const decode_buffers *buffers, int64_t n_queries,
                                            const head_split *split, const query_batch *batch)
{
    attend_any_batch(buffers, n_queries, split, batch, FLOAT32);
}

/* Attend with all queries of one head of keys to the rows of one split.
 *
 * Rows are copied as floats if they are not whole vectors, or if so many queries attend to them that
 * widening them for each batch takes longer. INT8 is not copied for the latter reason: the copy
 * has its scales, by which scores are multiplied otherwise.
 */
INLINE void attend_queries(const split_item *item, head_split *split, const float *q,
                           const decode_buffers *buffers, float *partials, int kind)
{
    const kv_cache *cache = split->cache;
    const int64_t n = cache->head_dim, width = padded_head(cache);
    const int64_t group = queries_per_kv_head(cache);
    const int64_t n_rows = split->rows.end - split->rows.start, stride = partial_floats(cache);
    int64_t left = 0, i = 0; /* queries, and the next one of this sequence */
    for (int s = 0; s < item->n_sequences; s++)
        left += item->sequences[s].n_new * group;
    const int are_many = left > 4 * QUERY_BATCH && kind_bytes(kind) == 2;
    if (n != width || are_many)
        copy_split(split, buffers->rows, are_many && transposes_keys(n), kind);
    for (int64_t size; left > 0; left -= size) {
        query_batch batch;
        size = left < 3 ? 1 : left < QUERY_BATCH ? left : QUERY_BATCH;
        for (int64_t j = 0; j < size; j++, i++) {
            if (i == cache->n_new * group) {
                q += cache->n_new * cache->n_heads * n;
                partials += sequence_partials(cache);
                cache++;
                i = 0;
            }
            const int64_t seen = cache->length + i / group + 1 - split->rows.start;
            batch.n_visible[j] = seen < 0 ? 0 : seen > n_rows ? n_rows : seen;
            batch.partials[j] = partials +
                                (item->head * n_splits(cache) + item->number) * split_stride(cache) +
                                i * stride;
            const float *query =
                q + (i / group * cache->n_heads + item->head * group + i % group) * n;
            batch.queries[j] = query;
            if (n != width) {
                batch.queries[j] = buffers->queries + j * width;
                load_row((const char *)query, NULL, n, FLOAT32, buffers->queries + j * width);
            }
        }
        if (split->copy || kind == FLOAT32)
            attend_batch_of_floats(buffers, size, split, &batch);
        else
            attend_any_batch(buffers, size, split, &batch, kind);
    }
}

static void attend_to_split(const split_item *item, int64_t layer, const float *q,
                            const decode_buffers *buffers, float *partials)
{
    const kv_cache *cache = item->sequences;
    const int64_t step = split_rows(cache), first = item->number * step;
    const range rows = {first, min(first + step, cache->length + cache->n_new)};
    head_split split = {cache, layer, item->head, rows, NULL, 0};
    if (cache->kind == FLOAT32)
        attend_queries(item, &split, q, buffers, partials, FLOAT32);
    else if (cache->kind == BFLOAT16)
        attend_queries(item, &split, q, buffers, partials, BFLOAT16);
    else if (cache->kind == FLOAT16)
        attend_queries(item, &split, q, buffers, partials, FLOAT16);
    else
        attend_queries(item, &split, q, buffers, partials, INT8);
}

/* Rescale partial results to their common maximum, and add them. */
static void merge_partials(const float *partials, int64_t n_partials, int64_t stride, int64_t n,
                           float *to)
{
    float max = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n_partials; i++)
        max = partials[i * stride] > max ? partials[i * stride] : max;
    memset(to, 0, sizeof(float) * (size_t)n);
    for (int64_t i = 0; i < n_partials; i++) {
        const float *partial = partials + i * stride;
        if (partial[0] == -INFINITY)
            continue;
        float factor = fast_exp(partial[0] - max);
        sum += factor * partial[1];
        for (int64_t d = 0; d < n; d++)
            to[d] += factor * partial[2 + d];
    }
    for (int64_t d = 0; d < n; d++)
        to[d] /= sum;
}

#endif
