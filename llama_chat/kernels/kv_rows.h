/* Reading rows of the cache, whatever type they are stored in. */

#ifndef KV_ROWS_H
#define KV_ROWS_H

#include "attention.h"

enum { LANES = 16 };

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float half_vector __attribute__((vector_size(2 * LANES)));
typedef float quarter_vector __attribute__((vector_size(LANES)));

INLINE int64_t size_of(int kind) { return kind == FLOAT32 ? 4 : kind == BFLOAT16 ? 2 : 1; }

INLINE char *head_of(const kv_cache *cache, void *const *buffers, int64_t layer, int64_t head,
                     int kind)
{
    return (char *)buffers[layer] + head * cache->capacity * cache->head_dim * size_of(kind);
}

/* Sixteen numbers of a row, the first of them number 16 * j; of INT8 without their scale. */
INLINE vector load_vector(const char *row, int64_t j, int kind)
{
    row += j * LANES * size_of(kind);
    if (kind == FLOAT32)
        return *(const vector *)row;
    /* Loops, which compilers turn into one widening instruction, and vector types into several. */
    vector v;
    if (kind == BFLOAT16) {
        uint32_t bits[LANES];
        for (int i = 0; i < LANES; i++)
            bits[i] = (uint32_t)((const uint16_t *)row)[i] << 16;
        memcpy(&v, bits, sizeof v);
    } else {
        float numbers[LANES];
        for (int i = 0; i < LANES; i++)
            numbers[i] = (float)((const int8_t *)row)[i];
        memcpy(&v, numbers, sizeof v);
    }
    return v;
}

INLINE float sum_of(vector v)
{
    half_vector low, high;
    quarter_vector first, second;
    memcpy(&low, &v, sizeof low);
    memcpy(&high, (const char *)&v + sizeof low, sizeof high);
    low += high;
    memcpy(&first, &low, sizeof first);
    memcpy(&second, (const char *)&low + sizeof first, sizeof second);
    first += second;
    return (first[0] + first[2]) + (first[1] + first[3]);
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

INLINE const float *scales_of(const kv_cache *cache, float *const *scales, int64_t layer,
                              int64_t head, int kind)
{
    return kind == INT8 ? scales[layer] + head * cache->capacity : NULL;
}

INLINE int64_t filled_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

#endif
