/* Reading of rows of the cache, of any type. */

#ifndef KV_CACHE_ROWS_H
#define KV_CACHE_ROWS_H

#include "attention.h"

INLINE int64_t kind_bytes(int kind) { return kind == FLOAT32 ? 4 : kind == INT8 ? 1 : 2; }

/* Consecutive rows of keys and values of one head. */
typedef struct {
    const char *keys, *values;
    const float *key_scales, *value_scales; /* INT8 only */
    int64_t n, row_bytes;
    int is_copy; /* they were copied a moment ago */
} head_rows;

/* Find the rows of a head from `rows.start` on: those before `rows.end` that lie in one segment. */
INLINE head_rows rows_of_head(const kv_cache *cache, int64_t layer, int64_t head, range rows,
                              int kind)
{
    int64_t i = cache->n_segments - 1, end = rows.end;
    for (; cache->segments[i].start > rows.start; i--)
        end = min(end, cache->segments[i].start);
    const cache_segment *segment = cache->segments + i;
    const int64_t at = head * segment->capacity + rows.start - segment->start;
    const int64_t row_bytes = cache->head_dim * kind_bytes(kind);
    return (head_rows){
        .keys = (const char *)segment->keys[layer] + at * row_bytes,
        .values = (const char *)segment->values[layer] + at * row_bytes,
        .key_scales = kind == INT8 ? segment->key_scales[layer] + at : NULL,
        .value_scales = kind == INT8 ? segment->value_scales[layer] + at : NULL,
        .n = end - rows.start,
        .row_bytes = row_bytes,
    };
}

#endif
