/* Attention of a few new tokens to a cache, each head of keys and values serving a group of query
 * heads.
 *
 * It is bound by reading the cache, which is cut into runs of rows: each is read once for all
 * queries of its head, and what the runs give is merged. Where the runs begin depends on nothing but
 * their place, so that a token gets the same numbers whether it is read alone or with others.
 */

#include <math.h>

#include "kv_rows.h"

enum { MAX_RUN = 256 };

/* Rows of a run: so few that the heads of a small model give every thread enough to do. */
INLINE int64_t run_rows(const kv_cache *cache) { return cache->n_kv_heads < 8 ? 64 : MAX_RUN; }

INLINE int64_t n_runs(const kv_cache *cache, int n_x)
{
    return filled_up(cache->length + n_x, run_rows(cache)) / run_rows(cache);
}

/* What one query gets of one run: the largest score, the sum of the weights, and with them the
 * weighted sum of the values. */
INLINE int64_t partial_floats(const kv_cache *cache) { return cache->head_dim + 2; }

typedef struct {
    float *row;    /* (head_dim) */
    float *scores; /* (n_x * group, MAX_RUN) */
} few_buffers;

/* Attend with all queries of one head of keys to the rows of one run. */
INLINE void attend_to_run(const kv_cache *cache, int64_t layer, const float *q, int n_x,
                          int64_t head, range rows, few_buffers own, float *partials, int kind)
{
    const int64_t n = cache->head_dim, group = cache->n_heads / cache->n_kv_heads;
    const int64_t n_queries = n_x * group, n_rows = rows.end - rows.start;
    const int64_t padded = filled_up(n_rows, LANES);
    const char *keys = head_of(cache, cache->keys, layer, head, kind);
    const char *values = head_of(cache, cache->values, layer, head, kind);
    const float *key_scales = scales_of(cache, cache->key_scales, layer, head, kind);
    const float *value_scales = scales_of(cache, cache->value_scales, layer, head, kind);
    for (int64_t i = 0; i < n_queries; i++)
        for (int64_t r = n_rows; r < padded; r++)
            own.scores[i * MAX_RUN + r] = -INFINITY;
    for (int64_t r = 0; r < n_rows; r++) {
        load_row(keys, key_scales, rows.start + r, n, kind, own.row);
        for (int64_t i = 0; i < n_queries; i++) {
            const float *query = q + (i / group * cache->n_heads + head * group + i % group) * n;
            float dot = 0;
#pragma omp simd reduction(+ : dot)
            for (int64_t d = 0; d < n; d++)
                dot += query[d] * own.row[d];
            int visible = rows.start + r <= cache->length + i / group;
            own.scores[i * MAX_RUN + r] = visible ? dot : -INFINITY;
        }
    }
    for (int64_t i = 0; i < n_queries; i++) {
        float *scores = own.scores + i * MAX_RUN, *to = partials + i * partial_floats(cache);
        float most = -INFINITY, sum = 0;
#pragma omp simd reduction(max : most)
        for (int64_t r = 0; r < padded; r++)
            most = scores[r] > most ? scores[r] : most;
#pragma omp simd reduction(+ : sum)
        for (int64_t r = 0; r < padded; r++) { /* where nothing is visible, -inf - -inf is none */
            scores[r] = scores[r] == -INFINITY ? 0 : fast_exp(scores[r] - most);
            sum += scores[r];
        }
        to[0] = most;
        to[1] = sum;
        memset(to + 2, 0, sizeof(float) * (size_t)n);
    }
    for (int64_t r = 0; r < n_rows; r++) {
        load_row(values, value_scales, rows.start + r, n, kind, own.row);
        for (int64_t i = 0; i < n_queries; i++) {
            float weight = own.scores[i * MAX_RUN + r];
            float *to = partials + i * partial_floats(cache) + 2;
            for (int64_t d = 0; d < n; d++)
                to[d] += weight * own.row[d];
        }
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
                       float *partials, float *own, int kind)
{
    const int64_t group = cache->n_heads / cache->n_kv_heads, runs = n_runs(cache, n_x);
    const int64_t stride = n_x * group * partial_floats(cache); /* from a run to the next */
    const int64_t total = cache->length + n_x, step = run_rows(cache);
    const few_buffers buffers = {own, own + filled_up(cache->head_dim, LANES)};
    range items = share_of(cache->n_kv_heads * runs);
    for (int64_t item = items.start; item < items.end; item++) {
        int64_t first = item % runs * step;
        range rows = {first, first + step < total ? first + step : total};
        attend_to_run(cache, layer, q, n_x, item / runs, rows, buffers, partials + item * stride,
                      kind);
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

#define FEW(target, level)                                                                         \
    target static void few_##level(const kv_cache *cache, int64_t layer, const float *q, int n_x,  \
                                   float *out, float *partials, float *own)                        \
    {                                                                                              \
        cache->kind == FLOAT32    ? attend_few(cache, layer, q, n_x, out, partials, own, FLOAT32)  \
        : cache->kind == BFLOAT16 ? attend_few(cache, layer, q, n_x, out, partials, own, BFLOAT16) \
                                  : attend_few(cache, layer, q, n_x, out, partials, own, INT8);    \
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
    int64_t queries = n_x * (cache->n_heads / cache->n_kv_heads);
    return (filled_up(cache->head_dim, LANES) + queries * MAX_RUN) * (int64_t)sizeof(float);
}

void attend(const kv_cache *cache, int64_t layer, const float *q, int n_x, float *out, void *shared,
            void *own, int level)
{
    if (n_x > FEW_TOKENS)
        attend_many(cache, layer, q, n_x, out, own, level);
    else
        FEW_OF[level](cache, layer, q, n_x, out, shared, own);
}
