/* Attention of new tokens to a cache, each head of keys and values serving a group of query heads.
 *
 * A few tokens are bound by reading the cache: it is cut into runs of rows, each of which is read
 * once for all queries of its head, and what the runs give is merged. Where the runs begin depends
 * on nothing but their place, so that a token gets the same numbers whether it is read alone or
 * together with others.
 *
 * Many tokens are bound by arithmetic: blocks of queries meet blocks of keys in registers, and the
 * softmax goes along with them (Dao et al. 2022, https://arxiv.org/abs/2205.14135).
 */

#include <math.h>

#include "attention.h"

enum { LANES = 16 };

/* ---- rows of the cache --------------------------------------------------------------------- */

INLINE int64_t size_of(int kind) { return kind == FLOAT32 ? 4 : kind == BFLOAT16 ? 2 : 1; }

INLINE char *head_of(const kv_cache *cache, void *const *buffers, int64_t layer, int64_t head,
                     int kind)
{
    return (char *)buffers[layer] + head * cache->capacity * cache->head_dim * size_of(kind);
}

INLINE void load_row(const void *from, const float *scales, int64_t row, int64_t n, int kind,
                     float *to)
{
    if (kind == FLOAT32)
        memcpy(to, (const float *)from + row * n, sizeof(float) * (size_t)n);
    else if (kind == BFLOAT16)
        for (int64_t i = 0; i < n; i++)
            to[i] = bfloat16_to_float(((const uint16_t *)from)[row * n + i]);
    else
        for (int64_t i = 0; i < n; i++)
            to[i] = scales[row] * (float)((const int8_t *)from)[row * n + i];
}

/* Store `n` of the numbers of one head of a token, from the `first` of them on: all, if INT8. */
INLINE void store_row(const kv_cache *cache, void *const *buffers, float *const *scales,
                      int64_t layer, int64_t head, int64_t row, int64_t first, int64_t n,
                      const float *from)
{
    int64_t at = (head * cache->capacity + row) * cache->head_dim + first;
    if (cache->kind == FLOAT32)
        memcpy((float *)buffers[layer] + at, from, sizeof(float) * (size_t)n);
    else if (cache->kind == BFLOAT16)
        for (int64_t i = 0; i < n; i++)
            ((uint16_t *)buffers[layer])[at + i] = to_bfloat16(from[i]);
    else {
        float largest = 0, nothing = 0;
        for (int64_t i = 0; i < n; i++) {
            largest = fabsf(from[i]) > largest ? fabsf(from[i]) : largest;
            nothing += from[i] * 0;
        }
        float inverse = largest > 0 ? 127 / largest : 0;
        for (int64_t i = 0; i < n; i++)
            ((int8_t *)buffers[layer])[at + i] =
                (int8_t)rounded_part(from[i] * inverse + ROUNDING);
        scales[layer][head * cache->capacity + row] = largest / 127 + nothing;
    }
}

int64_t rows_together(const kv_cache *cache) { return cache->kind == INT8 ? cache->head_dim : 1; }

/* ---- rotary embedding ---------------------------------------------------------------------- */

/* Turn each pair of neighbours by its angle, as rope.py does; `rows` are some columns of x. */
INLINE void rotate(const kv_cache *cache, float *x, int64_t m, range rows, float scale)
{
    const int64_t n = cache->head_dim;
    const float *cos = cache->cos + m * n / 2, *sin = cache->sin + m * n / 2;
    for (int64_t i = rows.start; i < rows.end;) {
        const int64_t first = i % n, end = i + n - first < rows.end ? i + n - first : rows.end;
        for (int64_t j = 0; j < (end - i) / 2; j++) {
            float even = x[i + 2 * j] * scale, odd = x[i + 2 * j + 1] * scale;
            x[i + 2 * j] = even * cos[first / 2 + j] - odd * sin[first / 2 + j];
            x[i + 2 * j + 1] = even * sin[first / 2 + j] + odd * cos[first / 2 + j];
        }
        i = end;
    }
}

INLINE void rotate_all(const kv_cache *cache, float *x, int n_x, int64_t width, range rows,
                       float scale)
{
    for (int64_t m = 0; m < n_x; m++)
        rotate(cache, x + m * width, m, rows, scale);
}

INLINE void store_all(const kv_cache *cache, void *const *buffers, float *const *scales,
                      int64_t layer, const float *x, int n_x, range rows)
{
    const int64_t n = cache->head_dim, width = cache->n_kv_heads * n;
    for (int64_t m = 0; m < n_x; m++)
        for (int64_t i = rows.start; i < rows.end;) {
            const int64_t first = i % n, end = i + n - first < rows.end ? i + n - first : rows.end;
            store_row(cache, buffers, scales, layer, i / n, cache->length + m, first, end - i,
                      x + m * width + i);
            i = end;
        }
}

/* ---- a few tokens -------------------------------------------------------------------------- */

enum { MAX_RUN = 256 };

/* Rows of a run: so few that the heads of a small model give every thread enough to do. */
INLINE int64_t run_rows(const kv_cache *cache) { return cache->n_kv_heads < 8 ? 64 : MAX_RUN; }

INLINE int64_t n_runs(const kv_cache *cache, int n_x)
{
    return (cache->length + n_x + run_rows(cache) - 1) / run_rows(cache);
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
    const int64_t padded = (n_rows + LANES - 1) / LANES * LANES;
    const char *keys = head_of(cache, cache->keys, layer, head, kind);
    const char *values = head_of(cache, cache->values, layer, head, kind);
    const float *key_scales = kind == INT8 ? cache->key_scales[layer] + head * cache->capacity : 0;
    const float *value_scales =
        kind == INT8 ? cache->value_scales[layer] + head * cache->capacity : 0;
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
    const few_buffers buffers = {own, own + (cache->head_dim + LANES) / LANES * LANES};
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

/* ---- many tokens --------------------------------------------------------------------------- */

enum { QUERIES = 128, KEYS = 64, TILE_ROWS = 4, TILE_VECTORS = 4 };

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* Part of c (rows, n) += a (rows, k) b (k, n): four rows, and so many vectors. */
INLINE void multiply_tile(const float *a, int64_t a_row, const float *b, int64_t b_row, float *c,
                          int64_t c_row, int64_t k, int n_vectors)
{
    vector sums[TILE_ROWS][TILE_VECTORS];
    for (int i = 0; i < TILE_ROWS; i++)
        for (int j = 0; j < n_vectors; j++)
            sums[i][j] = *(const vector *)(c + i * c_row + j * LANES);
    for (int64_t l = 0; l < k; l++) {
        vector right[TILE_VECTORS];
        for (int j = 0; j < n_vectors; j++)
            right[j] = *(const vector *)(b + l * b_row + j * LANES);
        for (int i = 0; i < TILE_ROWS; i++)
            for (int j = 0; j < n_vectors; j++)
                sums[i][j] += a[i * a_row + l] * right[j];
    }
    for (int i = 0; i < TILE_ROWS; i++)
        for (int j = 0; j < n_vectors; j++)
            *(vector *)(c + i * c_row + j * LANES) = sums[i][j];
}

/* c (rows, n) += a (rows, k) b (k, n), with rows a multiple of 4 and n one of LANES. */
INLINE void multiply_floats(const float *a, int64_t a_row, const float *b, int64_t b_row, float *c,
                            int64_t c_row, int64_t rows, int64_t k, int64_t n)
{
    const int64_t wide = TILE_VECTORS * LANES;
    for (int64_t i = 0; i < rows; i += TILE_ROWS) {
        int64_t j = 0;
        for (; j + wide <= n; j += wide)
            multiply_tile(a + i * a_row, a_row, b + j, b_row, c + i * c_row + j, c_row, k,
                          TILE_VECTORS);
        for (; j < n; j += LANES)
            multiply_tile(a + i * a_row, a_row, b + j, b_row, c + i * c_row + j, c_row, k, 1);
    }
}

/* What a thread has for a block of queries; `width` is head_dim, filled up to whole vectors. */
typedef struct {
    float *queries; /* (n_rows, width) */
    float *sums;    /* (n_rows, width), of weighted values */
    float *scores;  /* (n_rows, KEYS) */
    float *keys;    /* (width, KEYS), transposed */
    float *values;  /* (KEYS, width) */
    float *most;    /* (n_rows), the largest score so far */
    float *total;   /* (n_rows), the sum of the weights so far */
    float *row;     /* (width) */
} many_buffers;

INLINE int64_t padded(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

/* Tokens in a block, all queries of one head of keys in it. */
INLINE int64_t block_tokens(const kv_cache *cache)
{
    int64_t tokens = QUERIES * cache->n_kv_heads / cache->n_heads;
    return tokens > 1 ? tokens : 1;
}

INLINE int64_t block_queries(const kv_cache *cache)
{
    return padded(block_tokens(cache) * (cache->n_heads / cache->n_kv_heads), TILE_ROWS);
}

INLINE many_buffers lay_out_many(const kv_cache *cache, float *own)
{
    const int64_t width = padded(cache->head_dim, LANES), rows = block_queries(cache);
    many_buffers b = {.queries = own};
    b.sums = b.queries + rows * width;
    b.scores = b.sums + rows * width;
    b.keys = b.scores + rows * KEYS;
    b.values = b.keys + width * KEYS;
    b.most = b.values + width * KEYS;
    b.total = b.most + padded(rows, LANES);
    b.row = b.total + padded(rows, LANES);
    return b;
}

/* Keys and values of some rows as floats, with zeros behind the last. */
INLINE void load_block(const kv_cache *cache, int64_t layer, int64_t head, range rows,
                       many_buffers b, int kind)
{
    const int64_t n = cache->head_dim, width = padded(n, LANES);
    const char *keys = head_of(cache, cache->keys, layer, head, kind);
    const char *values = head_of(cache, cache->values, layer, head, kind);
    const float *key_scales = kind == INT8 ? cache->key_scales[layer] + head * cache->capacity : 0;
    const float *value_scales =
        kind == INT8 ? cache->value_scales[layer] + head * cache->capacity : 0;
    for (int64_t r = 0; r < KEYS; r++) {
        float *value = b.values + r * width;
        memset(b.row, 0, sizeof(float) * (size_t)width);
        memset(value, 0, sizeof(float) * (size_t)width);
        if (rows.start + r < rows.end) {
            load_row(keys, key_scales, rows.start + r, n, kind, b.row);
            load_row(values, value_scales, rows.start + r, n, kind, value);
        }
        for (int64_t d = 0; d < width; d++)
            b.keys[d * KEYS + r] = b.row[d];
    }
}

/* Turn the scores of one query into weights; the first `visible` keys may be seen. */
INLINE void weigh(float *scores, int64_t visible, float *most, float *total, float *sums,
                  int64_t width)
{
    float largest = *most, sum = 0;
    for (int64_t r = visible; r < KEYS; r++)
        scores[r] = -INFINITY;
#pragma omp simd reduction(max : largest)
    for (int64_t r = 0; r < KEYS; r++)
        largest = scores[r] > largest ? scores[r] : largest;
#pragma omp simd reduction(+ : sum)
    for (int64_t r = 0; r < KEYS; r++) {
        scores[r] = scores[r] == -INFINITY ? 0 : fast_exp(scores[r] - largest);
        sum += scores[r];
    }
    if (largest > *most) {
        float factor = *most == -INFINITY ? 0 : fast_exp(*most - largest);
        *total *= factor;
        for (int64_t d = 0; d < width; d++)
            sums[d] *= factor;
    }
    *most = largest;
    *total += sum;
}

/* Attend with the queries of one head of keys of the tokens `first` to `end`. */
INLINE void attend_block(const kv_cache *cache, int64_t layer, const float *q, int64_t head,
                         int64_t first, int64_t end, float *out, many_buffers b, int kind)
{
    const int64_t n = cache->head_dim, width = padded(n, LANES);
    const int64_t group = cache->n_heads / cache->n_kv_heads;
    const int64_t n_queries = (end - first) * group, rows = padded(n_queries, TILE_ROWS);
    memset(b.queries, 0, sizeof(float) * (size_t)(rows * width));
    memset(b.sums, 0, sizeof(float) * (size_t)(rows * width));
    for (int64_t i = 0; i < n_queries; i++) {
        int64_t at = ((first + i / group) * cache->n_heads + head * group + i % group) * n;
        memcpy(b.queries + i * width, q + at, sizeof(float) * (size_t)n);
        b.most[i] = -INFINITY;
        b.total[i] = 0;
    }
    for (int64_t start = 0; start < cache->length + end; start += KEYS) {
        int64_t behind = start + KEYS < cache->length + end ? start + KEYS : cache->length + end;
        load_block(cache, layer, head, (range){start, behind}, b, kind);
        memset(b.scores, 0, sizeof(float) * (size_t)(rows * KEYS));
        multiply_floats(b.queries, width, b.keys, KEYS, b.scores, KEYS, rows, width, KEYS);
        for (int64_t i = 0; i < n_queries; i++) {
            int64_t visible = cache->length + first + i / group + 1 - start;
            visible = visible < 0 ? 0 : visible > KEYS ? KEYS : visible;
            weigh(b.scores + i * KEYS, visible, b.most + i, b.total + i, b.sums + i * width, width);
        }
        multiply_floats(b.scores, KEYS, b.values, width, b.sums, width, rows, KEYS, width);
    }
    for (int64_t i = 0; i < n_queries; i++) {
        float *to = out + ((first + i / group) * cache->n_heads + head * group + i % group) * n;
        for (int64_t d = 0; d < n; d++)
            to[d] = b.sums[i * width + d] / b.total[i];
    }
}

INLINE void attend_many(const kv_cache *cache, int64_t layer, const float *q, int n_x, float *out,
                        float *own, int kind)
{
    const int64_t tokens = block_tokens(cache), blocks = (n_x + tokens - 1) / tokens;
    const many_buffers b = lay_out_many(cache, own);
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < cache->n_kv_heads * blocks; item++) {
        /* The last tokens see most: they go first. */
        int64_t block = blocks - 1 - item / cache->n_kv_heads, first = block * tokens;
        attend_block(cache, layer, q, item % cache->n_kv_heads, first,
                     first + tokens < n_x ? first + tokens : n_x, out, b, kind);
    }
}

/* ---- by level ------------------------------------------------------------------------------ */

#define FUNCTIONS(target, level)                                                                   \
    target static void rotate_##level(const kv_cache *cache, float *x, int n_x, int64_t width,     \
                                      range rows, float scale)                                     \
    {                                                                                              \
        rotate_all(cache, x, n_x, width, rows, scale);                                             \
    }                                                                                              \
    target static void store_##level(const kv_cache *cache, void *const *buffers,                  \
                                     float *const *scales, int64_t layer, const float *x, int n_x, \
                                     range rows)                                                   \
    {                                                                                              \
        store_all(cache, buffers, scales, layer, x, n_x, rows);                                    \
    }                                                                                              \
    target static void few_##level(const kv_cache *cache, int64_t layer, const float *q, int n_x,  \
                                   float *out, float *partials, float *own)                        \
    {                                                                                              \
        cache->kind == FLOAT32    ? attend_few(cache, layer, q, n_x, out, partials, own, FLOAT32)  \
        : cache->kind == BFLOAT16 ? attend_few(cache, layer, q, n_x, out, partials, own, BFLOAT16) \
                                  : attend_few(cache, layer, q, n_x, out, partials, own, INT8);    \
    }                                                                                              \
    target static void many_##level(const kv_cache *cache, int64_t layer, const float *q, int n_x, \
                                    float *out, float *own)                                        \
    {                                                                                              \
        attend_many(cache, layer, q, n_x, out, own, cache->kind);                                  \
    }

FOR_LEVELS(FUNCTIONS)
static void (*const ROTATE[])(const kv_cache *, float *, int, int64_t, range, float) =
    BY_LEVEL(rotate);
static void (*const STORE[])(const kv_cache *, void *const *, float *const *, int64_t,
                             const float *, int, range) = BY_LEVEL(store);
static void (*const FEW[])(const kv_cache *, int64_t, const float *, int, float *, float *,
                           float *) = BY_LEVEL(few);
static void (*const MANY[])(const kv_cache *, int64_t, const float *, int, float *, float *) =
    BY_LEVEL(many);

void rotate_queries(const kv_cache *cache, float *q, int n_x, range rows, int level)
{
    float scale = 1 / sqrtf((float)cache->head_dim);
    ROTATE[level](cache, q, n_x, cache->n_heads * cache->head_dim, rows, scale);
}

void store_keys(const kv_cache *cache, int64_t layer, float *k, int n_x, range rows, int level)
{
    ROTATE[level](cache, k, n_x, cache->n_kv_heads * cache->head_dim, rows, 1);
    STORE[level](cache, cache->keys, cache->key_scales, layer, k, n_x, rows);
}

void store_values(const kv_cache *cache, int64_t layer, const float *v, int n_x, range rows,
                  int level)
{
    STORE[level](cache, cache->values, cache->value_scales, layer, v, n_x, rows);
}

/* Up to so many tokens are a few: as many as the program ever reads for the sake of one. */
INLINE int are_few(int n_x) { return n_x <= FEW_TOKENS; }

int64_t attention_shared_bytes(const kv_cache *cache, int n_x)
{
    int64_t floats = n_x * cache->n_heads * n_runs(cache, n_x) * partial_floats(cache);
    return are_few(n_x) ? floats * (int64_t)sizeof(float) : 0;
}

int64_t attention_own_bytes(const kv_cache *cache, int n_x)
{
    const int64_t group = cache->n_heads / cache->n_kv_heads, width = cache->head_dim + LANES;
    if (are_few(n_x))
        return (width + n_x * group * MAX_RUN) * (int64_t)sizeof(float);
    many_buffers b = lay_out_many(cache, NULL);
    return (b.row - b.queries + width) * (int64_t)sizeof(float);
}

void attend(const kv_cache *cache, int64_t layer, const float *q, int n_x, float *out, void *shared,
            void *own, int level)
{
    if (are_few(n_x))
        FEW[level](cache, layer, q, n_x, out, shared, own);
    else
        MANY[level](cache, layer, q, n_x, out, own);
}
