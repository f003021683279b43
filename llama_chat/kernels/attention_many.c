/* Attention of many new tokens to a cache.
 *
 * It is bound by arithmetic: blocks of queries meet blocks of keys in registers, and the softmax goes
 * along with them (Dao et al. 2022, https://arxiv.org/abs/2205.14135).
 */

#include <math.h>

#include "kv_rows.h"
#include "pairs.h"

enum { QUERIES = 128, KEYS = 64 };

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

/* Tokens in a block, all queries of one head of keys in it. */
INLINE int64_t block_tokens(const kv_cache *cache)
{
    int64_t tokens = QUERIES * cache->n_kv_heads / cache->n_heads;
    return tokens > 1 ? tokens : 1;
}

INLINE int64_t block_queries(const kv_cache *cache)
{
    return filled_up(block_tokens(cache) * (cache->n_heads / cache->n_kv_heads), TILE_ROWS);
}

INLINE many_buffers lay_out_many(const kv_cache *cache, float *own)
{
    const int64_t width = filled_up(cache->head_dim, PADDED), rows = block_queries(cache);
    many_buffers b = {.queries = own};
    b.sums = b.queries + rows * width;
    b.scores = b.sums + rows * width;
    b.keys = b.scores + rows * KEYS;
    b.values = b.keys + width * KEYS;
    b.most = b.values + width * KEYS;
    b.total = b.most + filled_up(rows, PADDED);
    b.row = b.total + filled_up(rows, PADDED);
    return b;
}

/* Keys and values of some rows as floats, with zeros behind the last. */
INLINE void load_block(const kv_cache *cache, int64_t layer, int64_t head, range rows,
                       many_buffers b, int kind)
{
    const int64_t n = cache->head_dim, width = filled_up(n, PADDED);
    const char *keys = head_of(cache, cache->keys, layer, head, kind);
    const char *values = head_of(cache, cache->values, layer, head, kind);
    const float *key_scales = scales_of(cache, cache->key_scales, layer, head, kind);
    const float *value_scales = scales_of(cache, cache->value_scales, layer, head, kind);
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

/* The same in pairs, of a cache in bfloat16: keys (width / 2, KEYS), values (KEYS / 2, width). */
INLINE void load_pairs(const kv_cache *cache, int64_t layer, int64_t head, range rows,
                       many_buffers b)
{
    const int64_t n = cache->head_dim, width = filled_up(n, PADDED);
    const size_t row_bytes = sizeof(uint16_t) * (size_t)n;
    const char *keys = head_of(cache, cache->keys, layer, head, BFLOAT16);
    const char *values = head_of(cache, cache->values, layer, head, BFLOAT16);
    uint32_t *key_pairs = (uint32_t *)b.keys, *value_pairs = (uint32_t *)b.values;
    uint32_t *key = (uint32_t *)b.row;
    uint16_t *value = (uint16_t *)b.row;
    memset(b.row, 0, sizeof(float) * (size_t)width);
    for (int64_t r = 0; r < KEYS; r++) {
        if (rows.start + r < rows.end)
            memcpy(key, keys + (rows.start + r) * (int64_t)row_bytes, row_bytes);
        else
            memset(key, 0, row_bytes);
        for (int64_t d = 0; d < width / 2; d++)
            key_pairs[d * KEYS + r] = key[d];
    }
    for (int64_t r = 0; r < KEYS; r += 2) {
        memset(b.row, 0, sizeof(float) * (size_t)width);
        for (int64_t i = 0; i < 2; i++)
            if (rows.start + r + i < rows.end)
                memcpy(value + i * width, values + (rows.start + r + i) * (int64_t)row_bytes,
                       row_bytes);
        for (int64_t d = 0; d < width; d++)
            value_pairs[r / 2 * width + d] = value[d] | (uint32_t)value[width + d] << 16;
    }
}

/* Turn the scores of one query for `n_keys` keys into weights; the first `visible` may be seen. */
INLINE void weigh(float *scores, int64_t n_keys, int64_t visible, float *most, float *total,
                  float *sums, int64_t width)
{
    float largest = *most, sum = 0;
    for (int64_t r = visible; r < n_keys; r++)
        scores[r] = -INFINITY;
#pragma omp simd reduction(max : largest)
    for (int64_t r = 0; r < n_keys; r++)
        largest = scores[r] > largest ? scores[r] : largest;
#pragma omp simd reduction(+ : sum)
    for (int64_t r = 0; r < n_keys; r++) {
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

/* Attend with the queries of one head of keys of the tokens `first` to `end`; `pairs` says how to
 * multiply. */
INLINE void attend_block(const kv_cache *cache, int64_t layer, const float *q, int64_t head,
                         int64_t first, int64_t end, float *out, many_buffers b, int kind,
                         int pairs, int level)
{
    const int64_t n = cache->head_dim, width = filled_up(n, PADDED);
    const int64_t group = cache->n_heads / cache->n_kv_heads;
    const int64_t n_queries = (end - first) * group, rows = filled_up(n_queries, TILE_ROWS);
    memset(b.queries, 0, sizeof(float) * (size_t)(rows * width));
    memset(b.sums, 0, sizeof(float) * (size_t)(rows * width));
    for (int64_t i = 0; i < n_queries; i++) {
        int64_t at = ((first + i / group) * cache->n_heads + head * group + i % group) * n;
        memcpy(b.queries + i * width, q + at, sizeof(float) * (size_t)n);
        b.most[i] = -INFINITY;
        b.total[i] = 0;
    }
    if (pairs)
        round_to_pairs(b.queries, rows, width, width);
    const int64_t total = cache->length + end;
    for (int64_t start = 0; start < total; start += KEYS) {
        const range keys = {start, start + KEYS < total ? start + KEYS : total};
        /* Queries that stand before all of these keys see none of them. */
        int64_t before = start - cache->length - first;
        before = before > 0 ? before * group / TILE_ROWS * TILE_ROWS : 0;
        const int64_t n_keys = filled_up(keys.end - keys.start, PADDED);
        const float *queries = b.queries + before * width;
        float *scores = b.scores + before * KEYS, *sums = b.sums + before * width;
        memset(scores, 0, sizeof(float) * (size_t)((rows - before) * KEYS));
        if (pairs) {
            load_pairs(cache, layer, head, keys, b);
            multiply_pairs((const uint32_t *)queries, width, (const uint32_t *)b.keys, KEYS, scores,
                           KEYS, rows - before, width / 2, n_keys);
        } else {
            load_block(cache, layer, head, keys, b, kind);
            BY_WIDTH(level, multiply_floats, queries, width, b.keys, KEYS, scores, KEYS,
                     rows - before, width, n_keys);
        }
        for (int64_t i = before; i < n_queries; i++) {
            int64_t visible = cache->length + first + i / group + 1 - start;
            visible = visible < 0 ? 0 : visible > n_keys ? n_keys : visible;
            weigh(b.scores + i * KEYS, n_keys, visible, b.most + i, b.total + i,
                  b.sums + i * width, width);
        }
        if (pairs) {
            round_to_pairs(scores, rows - before, n_keys, KEYS);
            multiply_pairs((const uint32_t *)scores, KEYS, (const uint32_t *)b.values, width, sums,
                           width, rows - before, n_keys / 2, width);
        } else {
            BY_WIDTH(level, multiply_floats, scores, KEYS, b.values, width, sums, width,
                     rows - before, n_keys, width);
        }
    }
    for (int64_t i = 0; i < n_queries; i++) {
        float *to = out + ((first + i / group) * cache->n_heads + head * group + i % group) * n;
        for (int64_t d = 0; d < n; d++)
            to[d] = b.sums[i * width + d] / b.total[i];
    }
}

INLINE void attend_blocks(const kv_cache *cache, int64_t layer, const float *q, int n_x, float *out,
                        float *own, int kind, int pairs, int level)
{
    const int64_t tokens = block_tokens(cache), blocks = filled_up(n_x, tokens) / tokens;
    const many_buffers b = lay_out_many(cache, own);
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < cache->n_kv_heads * blocks; item++) {
        /* The last tokens see most: they go first. */
        int64_t block = blocks - 1 - item / cache->n_kv_heads, first = block * tokens;
        attend_block(cache, layer, q, item % cache->n_kv_heads, first,
                     first + tokens < n_x ? first + tokens : n_x, out, b, kind, pairs, level);
    }
}

#define MANY(target, level, number)                                                                \
    target static void many_##level(const kv_cache *cache, int64_t layer, const float *q, int n_x, \
                                    float *out, float *own)                                        \
    {                                                                                              \
        if (number == AVX512_VNNI && cache->kind == BFLOAT16 && has_pairs())                       \
            attend_blocks(cache, layer, q, n_x, out, own, BFLOAT16, 1, number);                    \
        else                                                                                       \
            attend_blocks(cache, layer, q, n_x, out, own, cache->kind, 0, number);                 \
    }

FOR_LEVELS(MANY)
static void (*const MANY_OF[])(const kv_cache *, int64_t, const float *, int, float *, float *) =
    BY_LEVEL(many);

int64_t many_bytes(const kv_cache *cache)
{
    many_buffers b = lay_out_many(cache, NULL);
    return (b.row - b.queries + filled_up(cache->head_dim, PADDED)) * (int64_t)sizeof(float);
}

void attend_many(const kv_cache *cache, int64_t layer, const float *q, int n_x, float *out, void *own,
                 int level)
{
    MANY_OF[level](cache, layer, q, n_x, out, own);
}
