/* Attention of a few new tokens to a cache, each head of keys and values serving a group of query
 * heads.
 *
 * It is bound by reading the cache, which is cut into runs of rows: each is read once for all
 * queries of its head, and what the runs give is merged. Where the runs begin depends on nothing but
 * their place, so that a token gets the same numbers whether it is read alone or with others.
 */

#include <math.h>

#include "kv_rows.h"

/* Rows of a run: so few that the heads of a small model give every thread enough to do. */
INLINE int64_t run_rows(const kv_cache *cache) { return cache->n_kv_heads < 8 ? 64 : MAX_RUN; }

INLINE int64_t n_runs(const kv_cache *cache, int n_x)
{
    return filled_up(cache->length + n_x, run_rows(cache)) / run_rows(cache);
}

/* What one query gets of one run: the largest score, the sum of the weights, and with them the
 * weighted sum of the values. */
INLINE int64_t partial_floats(const kv_cache *cache)
{
    return filled_up(cache->head_dim, PADDED) + 2;
}

typedef struct {
    float *queries; /* (TOGETHER, head_dim), filled up to whole vectors with zeros */
    float *scores;  /* (TOGETHER, MAX_RUN) */
    float *rows;    /* (2, MAX_RUN, head_dim), filled up, of heads that are not whole vectors */
} few_buffers;

/* Turn the first `visible` of `padded` scores into weights, all others into 0; the largest score and
 * the sum of the weights go to `partial`. */
INLINE void weigh(float *scores, int64_t visible, int64_t padded, float *partial)
{
    float most = -INFINITY, sum = 0;
    for (int64_t r = visible; r < padded; r++)
        scores[r] = -INFINITY;
#pragma omp simd reduction(max : most)
    for (int64_t r = 0; r < padded; r++)
        most = scores[r] > most ? scores[r] : most;
#pragma omp simd reduction(+ : sum)
    for (int64_t r = 0; r < padded; r++) {
        scores[r] = scores[r] == -INFINITY ? 0 : fast_exp(scores[r] - most);
        sum += scores[r];
    }
    partial[0] = most;
    partial[1] = sum;
}

/* Attend with `n_queries`, of which the last one sees the most rows. */
INLINE void attend_together(const few_buffers *own, int n_queries, const run *keys,
                            const run *values, const int64_t *visible, int64_t width,
                            float *partials, int64_t stride, int kind, int level)
{
    const int64_t n = visible[n_queries - 1];
    BY_WIDTH(level, score, own->queries, n_queries, keys, n, own->scores, width, kind);
    for (int i = 0; i < n_queries; i++)
        weigh(own->scores + i * MAX_RUN, visible[i], filled_up(n, PADDED), partials + i * stride);
    BY_WIDTH(level, sum_rows, own->scores, n_queries, values, n, partials + 2, stride, width, kind);
}

/* Find a run, and copy it to `copy` if its rows are not whole vectors. */
INLINE run find_run(const kv_cache *cache, void *const *buffers, float *const *scales,
                    int64_t layer, int64_t head, range rows, float *copy, int kind)
{
    const int64_t n = cache->head_dim, width = filled_up(n, PADDED);
    const char *first = head_of(cache, buffers, layer, head, kind);
    const float *head_scales = scales_of(cache, scales, layer, head, kind);
    if (n == width)
        return (run){first + rows.start * n * size_of(kind),
                     kind == INT8 ? head_scales + rows.start : NULL, n * size_of(kind)};
    memset(copy, 0, sizeof(float) * (size_t)((rows.end - rows.start) * width));
    for (int64_t r = rows.start; r < rows.end; r++)
        load_row(first, head_scales, r, n, kind, copy + (r - rows.start) * width);
    return (run){(const char *)copy, NULL, width * (int64_t)sizeof(float)};
}

/* Attend with all queries of one head of keys to the rows of one run.
 *
 * Each number of queries that work together is compiled for itself: those of the usual groups, of
 * types that are widened.
 */
INLINE void attend_to_run(const kv_cache *cache, int64_t layer, const float *q, int n_x,
                          int64_t head, range rows, few_buffers own, float *partials, int kind,
                          int level)
{
    const int64_t n = cache->head_dim, width = filled_up(n, PADDED);
    const int64_t group = cache->n_heads / cache->n_kv_heads, n_rows = rows.end - rows.start;
    const int64_t stride = partial_floats(cache), n_queries = n_x * group;
    const int are_floats = kind == FLOAT32 || n != width;
    float *copies = own.rows;
    run keys = find_run(cache, cache->keys, cache->key_scales, layer, head, rows, copies, kind);
    run values = find_run(cache, cache->values, cache->value_scales, layer, head, rows,
                          copies + MAX_RUN * width, kind);
    for (int64_t first = 0, together; first < n_queries; first += together) {
        const int64_t left = n_queries - first;
        together = are_floats || left < 3 ? 1 : left < TOGETHER ? left : TOGETHER;
        int64_t visible[TOGETHER];
        for (int64_t j = 0; j < together; j++) {
            int64_t i = first + j, seen = cache->length + i / group + 1 - rows.start;
            visible[j] = seen < 0 ? 0 : seen > n_rows ? n_rows : seen;
            memcpy(own.queries + j * width,
                   q + (i / group * cache->n_heads + head * group + i % group) * n,
                   sizeof(float) * (size_t)n);
        }
#define ATTEND(together, kind)                                                                     \
    attend_together(&own, together, &keys, &values, visible, width, partials + first * stride,     \
                    stride, kind, level)
        if (are_floats)
            ATTEND(1, FLOAT32);
        else if (together == 1)
            ATTEND(1, kind);
        else if (together == 3)
            ATTEND(3, kind);
        else
            ATTEND(TOGETHER, kind);
#undef ATTEND
    }
}

/* Put the runs of one query together; from one to the next are `stride` floats. */
INLINE void merge(const float *partials, int64_t runs, int64_t stride, int64_t n, float *to)
{
    float most = -INFINITY, sum = 0;
    for (int64_t r = 0; r < runs; r++)
        most = partials[r * stride] > most ? partials[r * stride] : most;
    memset(to, 0, sizeof(float) * (size_t)n);
    for (int64_t r = 0; r < runs; r++) {
        const float *partial = partials + r * stride;
        if (partial[0] == -INFINITY)
            continue;
        float factor = fast_exp(partial[0] - most);
        sum += factor * partial[1];
        for (int64_t d = 0; d < n; d++)
            to[d] += factor * partial[2 + d];
    }
    for (int64_t d = 0; d < n; d++)
        to[d] /= sum;
}

INLINE range share_of(int64_t n)
{
    const int64_t thread = omp_get_thread_num(), n_threads = omp_get_num_threads();
    return (range){n * thread / n_threads, n * (thread + 1) / n_threads};
}

INLINE void attend_few(const kv_cache *cache, int64_t layer, const float *q, int n_x, float *out,
                       float *partials, float *own, int kind, int level)
{
    const int64_t group = cache->n_heads / cache->n_kv_heads, runs = n_runs(cache, n_x);
    const int64_t stride = n_x * group * partial_floats(cache); /* from a run to the next */
    const int64_t total = cache->length + n_x, step = run_rows(cache);
    const int64_t width = filled_up(cache->head_dim, PADDED);
    const few_buffers buffers = {own, own + TOGETHER * width, own + TOGETHER * (width + MAX_RUN)};
    range items = share_of(cache->n_kv_heads * runs);
    memset(buffers.queries, 0, sizeof(float) * (size_t)(TOGETHER * width));
    for (int64_t item = items.start; item < items.end; item++) {
        int64_t first = item % runs * step;
        range rows = {first, first + step < total ? first + step : total};
        attend_to_run(cache, layer, q, n_x, item / runs, rows, buffers, partials + item * stride,
                      kind, level);
    }
#pragma omp barrier
    range queries = share_of(n_x * cache->n_heads);
    for (int64_t i = queries.start; i < queries.end; i++) {
        int64_t m = i / cache->n_heads, head = i % cache->n_heads;
        const float *first = partials + head / group * runs * stride +
                             (m * group + head % group) * partial_floats(cache);
        merge(first, runs, stride, cache->head_dim, out + i * cache->head_dim);
    }
#pragma omp barrier
}

#define FEW(target, level, number)                                                                 \
    target static void few_##level(const kv_cache *cache, int64_t layer, const float *q, int n_x,  \
                                   float *out, float *partials, float *own)                        \
    {                                                                                              \
        cache->kind == FLOAT32                                                                     \
            ? attend_few(cache, layer, q, n_x, out, partials, own, FLOAT32, number)                \
        : cache->kind == BFLOAT16                                                                  \
            ? attend_few(cache, layer, q, n_x, out, partials, own, BFLOAT16, number)               \
            : attend_few(cache, layer, q, n_x, out, partials, own, INT8, number);                  \
    }

FOR_LEVELS(FEW)
static void (*const FEW_OF[])(const kv_cache *, int64_t, const float *, int, float *, float *,
                              float *) = BY_LEVEL(few);

int64_t attention_shared_bytes(const kv_cache *cache, int n_x)
{
    if (n_x > FEW_TOKENS)
        return 0;
    int64_t floats = n_x * cache->n_heads * n_runs(cache, n_x) * partial_floats(cache);
    return floats * (int64_t)sizeof(float);
}

int64_t attention_own_bytes(const kv_cache *cache, int n_x)
{
    if (n_x > FEW_TOKENS)
        return many_bytes(cache);
    const int64_t width = filled_up(cache->head_dim, PADDED);
    const int64_t copies = width == cache->head_dim ? 0 : 2 * MAX_RUN * width;
    return (TOGETHER * (width + MAX_RUN) + copies) * (int64_t)sizeof(float);
}

void attend(const kv_cache *cache, int64_t layer, const float *q, int n_x, float *out, void *shared,
            void *own, int level)
{
    if (n_x > FEW_TOKENS)
        attend_many(cache, layer, q, n_x, out, own, level);
    else
        FEW_OF[level](cache, layer, q, n_x, out, shared, own);
}
