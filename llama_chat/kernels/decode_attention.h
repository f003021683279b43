/* Attention of a few queries to one split of the cache, for any instruction set; see
 * attention.c. */

#ifndef DECODE_ATTENTION_H
#define DECODE_ATTENTION_H

#include "attention_vectors.h"

/* Rows of keys or of values of one head. */
typedef struct {
    const char *rows;
    const float *scales;
    int64_t row_bytes;
} row_view;

/* Compute scores (n_queries, MAX_SPLIT) = queries (n_queries, width) * row, for `n` rows.
 *
 * A row is widened once for all queries, since that is most of the work. The loops over queries are
 * unrolled explicitly: otherwise GCC keeps the sums in memory.
 */
INLINE void score_rows(const float *queries, int n_queries, const row_view *keys, int64_t n,
                       float *scores, int64_t width, int kind)
{
    for (int64_t r = 0; r < n; r++) {
        const char *row = keys->rows + r * keys->row_bytes;
        vector dots[QUERY_BATCH] = {0};
        for (int64_t at = 0; at < width; at += LANES) {
            vector numbers = load(row, at, kind);
            UNROLL(8)
            for (int i = 0; i < n_queries; i++)
                dots[i] += *(const vector *)(queries + i * width + at) * numbers;
        }
        for (int i = 0; i < n_queries; i++)
            scores[i * MAX_SPLIT + r] =
                horizontal_sum(dots[i]) * (kind == INT8 ? keys->scales[r] : 1);
    }
}

/* Compute to (n_queries, stride) = the sums of `n` rows, weighted by (n_queries, MAX_SPLIT); only
 * `n_vectors` vectors of their columns, from column `first` on. */
INLINE void sum_numbers(const float *weights, int n_queries, const row_view *values, int64_t n,
                        float *to, int64_t stride, int64_t first, int n_vectors, int kind)
{
    vector sums[QUERY_BATCH][8] = {0};
    for (int64_t r = 0; r < n; r++) {
        const char *row = values->rows + r * values->row_bytes;
        float scale = kind == INT8 ? values->scales[r] : 1;
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
            *(vector *)(to + i * stride + first + j * LANES) = sums[i][j];
}

/* Compute the same for all `width` columns. */
INLINE void sum_rows(const float *weights, int n_queries, const row_view *values, int64_t n,
                     float *to, int64_t stride, int64_t width, int kind)
{
    const int n_vectors = n_queries == 1 ? 8 : N_SUMS / QUERY_BATCH;
    int64_t at = 0;
    for (; at + n_vectors * LANES <= width; at += n_vectors * LANES)
        sum_numbers(weights, n_queries, values, n, to, stride, at, n_vectors, kind);
    for (; n_vectors > 4 && at + 4 * LANES <= width; at += 4 * LANES)
        sum_numbers(weights, n_queries, values, n, to, stride, at, 4, kind);
    for (; at < width; at += LANES)
        sum_numbers(weights, n_queries, values, n, to, stride, at, 1, kind);
}

/* Turn the first `n_visible` of `n_padded` scores into exponentials, relative to their maximum, and
 * all others into 0; partial = (maximum, sum of exponentials). */
INLINE void softmax_partial(float *scores, int64_t n_visible, int64_t n_padded, float *partial)
{
    float max = -INFINITY, sum = 0;
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
    for (int i = 0; i < LANES; i++)
        sum += sums[i];
    partial[0] = max;
    partial[1] = sum;
}

/* Attend with `n_queries`, of which the last one attends to the most rows. */
INLINE void attend_batch(const decode_buffers *buffers, int n_queries, const row_view *keys,
                         const row_view *values, const int64_t *n_visible, int64_t width,
                         float *partials, int64_t stride, int kind)
{
    const int64_t n = n_visible[n_queries - 1];
    score_rows(buffers->queries, n_queries, keys, n, buffers->scores, width, kind);
    for (int i = 0; i < n_queries; i++)
        softmax_partial(buffers->scores + i * MAX_SPLIT, n_visible[i], round_up(n, PADDING),
                        partials + i * stride);
    sum_rows(buffers->scores, n_queries, values, n, partials + 2, stride, width, kind);
}

/* View the rows of a head in the cache, or in a padded copy if they are not whole vectors. */
INLINE row_view view_rows(const kv_cache *cache, void *const *buffers, float *const *scales,
                          int64_t layer, int64_t head, range rows, float *copy, int kind)
{
    const int64_t n = cache->head_dim, width = padded_head(cache);
    const char *first = rows_of_head(cache, buffers, layer, head, kind);
    const float *head_scales = scales_of_head(cache, scales, layer, head, kind);
    if (n == width)
        return (row_view){first + rows.start * n * kind_bytes(kind),
                          kind == INT8 ? head_scales + rows.start : NULL, n * kind_bytes(kind)};
    memset(copy, 0, sizeof(float) * (size_t)((rows.end - rows.start) * width));
    for (int64_t r = rows.start; r < rows.end; r++)
        load_row(first, head_scales, r, n, kind, copy + (r - rows.start) * width);
    return (row_view){(const char *)copy, NULL, width * (int64_t)sizeof(float)};
}

/* Attend with all queries of one head of keys to the rows of one split.
 *
 * Batches of 1, 3 and QUERY_BATCH queries are compiled, for the usual groups of query heads. Rows
 * of floats need no widening, so they are read by one query at a time.
 */
INLINE void attend_queries(const kv_cache *cache, int64_t layer, const float *q, int n_x,
                           int64_t head, range rows, const decode_buffers *buffers,
                           float *partials, int kind)
{
    const int64_t n = cache->head_dim, width = padded_head(cache);
    const int64_t group = queries_per_kv_head(cache), n_rows = rows.end - rows.start;
    const int64_t stride = partial_floats(cache), n_queries = n_x * group;
    const int are_floats = kind == FLOAT32 || n != width;
    row_view keys = view_rows(cache, cache->keys, cache->key_scales, layer, head, rows,
                              buffers->rows, kind);
    row_view values = view_rows(cache, cache->values, cache->value_scales, layer, head, rows,
                                buffers->rows + MAX_SPLIT * width, kind);
    for (int64_t first = 0, batch; first < n_queries; first += batch) {
        const int64_t left = n_queries - first;
        batch = are_floats || left < 3 ? 1 : left < QUERY_BATCH ? left : QUERY_BATCH;
        int64_t n_visible[QUERY_BATCH];
        for (int64_t j = 0; j < batch; j++) {
            int64_t i = first + j, seen = cache->length + i / group + 1 - rows.start;
            n_visible[j] = seen < 0 ? 0 : seen > n_rows ? n_rows : seen;
            memcpy(buffers->queries + j * width,
                   q + (i / group * cache->n_heads + head * group + i % group) * n,
                   sizeof(float) * (size_t)n);
        }
#define ATTEND(n_queries, kind)                                                                    \
    attend_batch(buffers, n_queries, &keys, &values, n_visible, width, partials + first * stride,  \
                 stride, kind)
        if (are_floats)
            ATTEND(1, FLOAT32);
        else if (batch == 1)
            ATTEND(1, kind);
        else if (batch == 3)
            ATTEND(3, kind);
        else
            ATTEND(QUERY_BATCH, kind);
#undef ATTEND
    }
}

static void attend_to_split(const kv_cache *cache, int64_t layer, const float *q, int n_x,
                            int64_t head, range rows, const decode_buffers *buffers,
                            float *partials)
{
    if (cache->kind == FLOAT32)
        attend_queries(cache, layer, q, n_x, head, rows, buffers, partials, FLOAT32);
    else if (cache->kind == BFLOAT16)
        attend_queries(cache, layer, q, n_x, head, rows, buffers, partials, BFLOAT16);
    else if (cache->kind == FLOAT16)
        attend_queries(cache, layer, q, n_x, head, rows, buffers, partials, FLOAT16);
    else
        attend_queries(cache, layer, q, n_x, head, rows, buffers, partials, INT8);
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
