/* Blocks of queries, keys and values in pairs of bfloat16, for prefill_attention.h.
 *
 * Instructions for bfloat16 add the products of two neighbouring numbers. A left operand holds such
 * pairs in the first half of its former rows of floats; a right operand holds pairs of numbers from
 * two of its rows. Strides are counted in units of 4 bytes, as those of floats.
 *
 * Before including this, the level defines convert_rows(), as in prefill_float.h, and
 *
 *     multiply_pairs(const uint32_t *a, int64_t a_stride, const uint32_t *b, int64_t b_stride,
 *                    float *c, int64_t c_stride, int64_t rows, int64_t n_pairs, int64_t n)
 *
 * which computes c (rows, n) += a (rows, 2 * n_pairs) b (2 * n_pairs, n).
 */

#ifndef PREFILL_BF16_H
#define PREFILL_BF16_H

#include "kv_cache_rows.h"

INLINE head_rows bf16_row(const kv_cache *cache, int64_t layer, int64_t head, int64_t row)
{
    return rows_of_head(cache, layer, head, (range){row, row + 1}, BFLOAT16);
}

/* Load pairs of keys (width / 2, KEY_BLOCK) and of values (KEY_BLOCK / 2, width) of some rows,
 * padded with zeros. */
INLINE void load_block(const kv_cache *cache, int64_t layer, int64_t head, range rows,
                       const prefill_buffers *b)
{
    const int64_t n = cache->head_dim, width = padded_head(cache);
    const size_t row_bytes = sizeof(uint16_t) * (size_t)n;
    uint32_t *key_pairs = (uint32_t *)b->keys, *value_pairs = (uint32_t *)b->values;
    uint32_t *key = (uint32_t *)b->rows;
    uint16_t *value = (uint16_t *)b->rows;
    memset(b->rows, 0, sizeof(float) * (size_t)width);
    for (int64_t r = 0; r < KEY_BLOCK; r++) {
        if (rows.start + r < rows.end)
            memcpy(key, bf16_row(cache, layer, head, rows.start + r).keys, row_bytes);
        else
            memset(key, 0, row_bytes);
        for (int64_t d = 0; d < width / 2; d++)
            key_pairs[d * KEY_BLOCK + r] = key[d];
    }
    for (int64_t r = 0; r < KEY_BLOCK; r += 2) {
        memset(b->rows, 0, sizeof(float) * (size_t)width);
        for (int64_t i = 0; i < 2; i++)
            if (rows.start + r + i < rows.end)
                memcpy(value + i * width, bf16_row(cache, layer, head, rows.start + r + i).values,
                       row_bytes);
        for (int64_t d = 0; d < width; d++)
            value_pairs[r / 2 * width + d] = value[d] | (uint32_t)value[width + d] << 16;
    }
}

INLINE void multiply_block(const float *a, int64_t a_stride, const float *b, int64_t b_stride,
                           float *c, int64_t c_stride, int64_t rows, int64_t k, int64_t n)
{
    multiply_pairs((const uint32_t *)a, a_stride, (const uint32_t *)b, b_stride, c, c_stride, rows,
                   k / 2, n);
}

#include "prefill_attention.h"

#endif
