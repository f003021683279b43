/* Reading rows of the cache, whatever type they are stored in, and what is done with them. */

#ifndef KV_ROWS_H
#define KV_ROWS_H

#include "attention.h"

/* Rows that are worked on are filled up to so many floats, the widest register. */
enum { PADDED = 16, TILE_ROWS = 4 };

/* So many queries at most are attended with at once, to so many rows. */
enum { TOGETHER = 4, MAX_RUN = 256 };

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

INLINE const float *scales_of(const kv_cache *cache, float *const *scales, int64_t layer,
                              int64_t head, int kind)
{
    return kind == INT8 ? scales[layer] + head * cache->capacity : NULL;
}

INLINE int64_t filled_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

/* One head's rows of keys or of values, where they lie. */
typedef struct {
    const char *rows;
    const float *scales;
    int64_t row_bytes;
} run;

#define LANES 4
#include "vectors.h"
#undef LANES
#define LANES 8
#include "vectors.h"
#undef LANES
#define LANES 16
#include "vectors.h"
#undef LANES

/* Calls one of them. */
#define BY_WIDTH(level, name, ...)                                                                 \
    (level == AVX512_VNNI ? name##_16(__VA_ARGS__)                                                 \
     : level == AVX2      ? name##_8(__VA_ARGS__)                                                  \
                          : name##_4(__VA_ARGS__))

#endif
