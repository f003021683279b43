/* Blocks of queries, keys and values in pairs of bfloat16, for prefill_attention.h.
 *
 * Instructions for bfloat16 add the products of two neighbouring numbers. A left operand holds such
 * pairs in the first half of its former rows of floats; a right operand holds pairs of numbers from
 * two of its rows. Strides are counted in units of 4 bytes, as those of floats.
 *
 * Before including this, the level defines
 *
 *     multiply_pairs(const uint32_t *a, int64_t a_stride, const uint32_t *b, int64_t b_stride,
 *                    float *c, int64_t c_stride, int64_t rows, int64_t n_pairs, int64_t n)
 *
 * which computes c (rows, n) += a (rows, 2 * n_pairs) b (2 * n_pairs, n).
 */

#ifndef PREFILL_BF16_H
#define PREFILL_BF16_H

#include "kv_cache_rows.h"
#include "pair_transposition.h"

/* Round PADDING numbers; `to` may be the place of the first ones. */
INLINE void round_numbers(const float *from, uint16_t *to)
{
    const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(from));
    memcpy(to, &rounded, sizeof rounded);
}

/* Convert rows (n_rows, width), `stride` floats apart, to operands in place. */
INLINE void convert_rows(float *rows, int64_t n_rows, int64_t width, int64_t stride)
{
    for (int64_t r = 0; r < n_rows; r++, rows += stride)
        for (int64_t i = 0; i < width; i += PADDING)
            round_numbers(rows + i, (uint16_t *)rows + i);
}

/* Numbers of a row of keys or of values, up to two vectors of them, from number `at` on, padded with
 * zeros; and zeros for no row. */
INLINE __m512i load_row_numbers(const uint16_t *row, int64_t at, int64_t n)
{
    if (!row)
        return _mm512_setzero_si512();
    const int64_t n_left = n - at;
    return n_left >= 32 ? _mm512_loadu_si512(row + at)
                        : _mm512_maskz_loadu_epi16((1u << n_left) - 1, row + at);
}

/* Load pairs of keys (width / 2, KEY_BLOCK) and of values (KEY_BLOCK / 2, width) of some rows,
 * padded with zeros. */
INLINE void load_block(const kv_cache *cache, int64_t layer, int64_t head, range rows,
                       const prefill_buffers *b)
{
    const int64_t n = cache->head_dim, width = padded_head(cache);
    uint32_t *keys = (uint32_t *)b->keys, *values = (uint32_t *)b->values;
    for (int64_t r = 0; r < KEY_BLOCK; r += SQUARE) {
        head_rows found[SQUARE] = {{0}};
        for (int64_t i = 0; i < SQUARE && rows.start + r + i < rows.end; i++)
            found[i] = rows_of_head(cache, layer, head, (range){rows.start + r + i, rows.end},
                                    BFLOAT16);
        for (int64_t at = 0; at < width; at += 2 * SQUARE) {
            const int64_t n_pairs = min(SQUARE, (width - at) / 2);
            __m512i square[SQUARE];
            for (int i = 0; i < SQUARE; i++)
                square[i] = load_row_numbers((const uint16_t *)found[i].keys, at, n);
            transpose_pairs(square);
            for (int i = 0; i < n_pairs; i++)
                _mm512_storeu_si512(keys + (at / 2 + i) * KEY_BLOCK + r, square[i]);
            for (int i = 0; i < SQUARE; i += 2) {
                uint32_t *to = values + (r + i) / 2 * width + at;
                const __m512i even = load_row_numbers((const uint16_t *)found[i].values, at, n);
                const __m512i odd = load_row_numbers((const uint16_t *)found[i + 1].values, at, n);
                _mm512_storeu_si512(to, pairs_of(first_half(even), first_half(odd)));
                if (n_pairs == SQUARE)
                    _mm512_storeu_si512(to + SQUARE, pairs_of(second_half(even), second_half(odd)));
            }
        }
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
