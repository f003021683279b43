/* What new tokens bring into the cache, and the rotary embedding on the way. */

#include <math.h>

#include "kv_rows.h"

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

#define FUNCTIONS(target, level, ...)                                                              \
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
    }

FOR_LEVELS(FUNCTIONS)
static void (*const ROTATE[])(const kv_cache *, float *, int, int64_t, range, float) =
    BY_LEVEL(rotate);
static void (*const STORE[])(const kv_cache *, void *const *, float *const *, int64_t,
                             const float *, int, range) = BY_LEVEL(store);

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
