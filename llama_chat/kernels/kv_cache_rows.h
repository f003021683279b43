/* Reading of rows of the cache, of any type. */

#ifndef KV_CACHE_ROWS_H
#define KV_CACHE_ROWS_H

#include "attention.h"

INLINE int64_t kind_bytes(int kind) { return kind == FLOAT32 ? 4 : kind == INT8 ? 1 : 2; }

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

#endif
