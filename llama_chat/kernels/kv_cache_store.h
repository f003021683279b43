/* Rotary embedding, and storage of keys and values of new tokens, for any instruction set. */

#ifndef KV_CACHE_STORE_H
#define KV_CACHE_STORE_H

#include <math.h>

#include "attention.h"

/* Rotate pairs of neighbours (Su et al. 2021, https://arxiv.org/abs/2104.09864), as rope.py
 * does. */
INLINE void rotate_row(const kv_cache *cache, float *x, int64_t m, range columns, float scale)
{
    const int64_t n = cache->head_dim;
    const float *cos = cache->cos + m * n / 2, *sin = cache->sin + m * n / 2;
    for (int64_t i = columns.start, end; i < columns.end; i = end) {
        const int64_t first = i % n, next_head = i + n - first;
        end = next_head < columns.end ? next_head : columns.end;
        for (int64_t j = 0; j < (end - i) / 2; j++) {
            float even = x[i + 2 * j] * scale, odd = x[i + 2 * j + 1] * scale;
            x[i + 2 * j] = even * cos[first / 2 + j] - odd * sin[first / 2 + j];
            x[i + 2 * j + 1] = even * sin[first / 2 + j] + odd * cos[first / 2 + j];
        }
    }
}

static void rotate(const kv_cache *cache, float *x, int64_t width, range columns, float scale)
{
    for (int64_t m = 0; m < cache->n_new; m++)
        rotate_row(cache, x + m * width, m, columns, scale);
}

/* Quantize a head of one token to 8 bits; the scale is NaN if a value is NaN or infinite. */
INLINE float quantize_head(const float *from, int64_t n, int8_t *to)
{
    float max = 0, not_finite = 0;
    for (int64_t i = 0; i < n; i++) {
        max = fabsf(from[i]) > max ? fabsf(from[i]) : max;
        not_finite += from[i] * 0;
    }
    const float inverse = quantizing_factor(max);
    for (int64_t i = 0; i < n; i++)
        to[i] = (int8_t)rounded_integer(from[i] * inverse + ROUNDING);
    return max / 127 + not_finite;
}

/* Store `n` numbers of one head of a token, from number `first` on: all of them, if INT8. `row` is
 * that of the token and the head in the buffers. */
INLINE void store_head(const kv_cache *cache, void *const *buffers, float *const *scales,
                       int64_t layer, int64_t row, int64_t first, int64_t n, const float *from)
{
    int64_t at = row * cache->head_dim + first;
    if (cache->kind == FLOAT32)
        memcpy((float *)buffers[layer] + at, from, sizeof(float) * (size_t)n);
    else if (cache->kind == BFLOAT16)
        for (int64_t i = 0; i < n; i++)
            ((uint16_t *)buffers[layer])[at + i] = to_bf16(from[i]);
    else if (cache->kind == FLOAT16)
        for (int64_t i = 0; i < n; i++)
            ((uint16_t *)buffers[layer])[at + i] = to_half(from[i]);
    else
        scales[layer][row] = quantize_head(from, n, (int8_t *)buffers[layer] + at);
}

static void store_rows(const kv_cache *cache, void *const *buffers, float *const *scales,
                       int64_t layer, const float *x, range columns)
{
    const int64_t n = cache->head_dim, width = cache->n_kv_heads * n;
    const cache_segment *own = cache->segments + cache->n_segments - 1;
    const int64_t first_row = cache->length - own->start;
    for (int64_t m = 0; m < cache->n_new; m++)
        for (int64_t i = columns.start, end; i < columns.end; i = end) {
            const int64_t first = i % n, next_head = i + n - first;
            end = next_head < columns.end ? next_head : columns.end;
            store_head(cache, buffers, scales, layer, i / n * own->capacity + first_row + m, first,
                       end - i, x + m * width + i);
        }
}

#endif
