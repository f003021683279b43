/* Reading of rows of the cache, of any type. */

#ifndef KV_CACHE_ROWS_H
#define KV_CACHE_ROWS_H

#include "attention.h"

INLINE int64_t kind_bytes(int kind) { return kind == FLOAT32 ? 4 : kind == BFLOAT16 ? 2 : 1; }

/* Pointers to the rows of one head, and to their scales. */
INLINE char *rows_of_head(const kv_cache *cache, void *const *buffers, int64_t layer, int64_t head,
                          int kind)
{
    return (char *)buffers[layer] + head * cache->capacity * cache->head_dim * kind_bytes(kind);
}

INLINE const float *scales_of_head(const kv_cache *cache, float *const *scales, int64_t layer,
                                   int64_t head, int kind)
{
    return kind == INT8 ? scales[layer] + head * cache->capacity : NULL;
}

/* Load one row of a head as floats. */
INLINE void load_row(const void *rows, const float *scales, int64_t row, int64_t n, int kind,
                     float *to)
{
    if (kind == FLOAT32)
        memcpy(to, (const float *)rows + row * n, sizeof(float) * (size_t)n);
    else if (kind == BFLOAT16)
        for (int64_t i = 0; i < n; i++)
            to[i] = bf16_to_float(((const uint16_t *)rows)[row * n + i]);
    else
        for (int64_t i = 0; i < n; i++)
            to[i] = scales[row] * (float)((const int8_t *)rows)[row * n + i];
}

#endif
