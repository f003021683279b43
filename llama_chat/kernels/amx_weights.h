/* Weights of any type as tiles of bfloat16, for amx.c.
 *
 * A tile has TILE_COLUMNS columns of the sixteen rows of a panel, as the right operand of a product:
 * each of its rows has two neighbouring columns of all rows of weights, in pairs.
 *
 * Before including this, the level includes panel_blocks.h.
 */

#ifndef AMX_WEIGHTS_H
#define AMX_WEIGHTS_H

#include "pair_transposition.h"

enum { TILE = PANEL, TILE_COLUMNS = 32, TILE_NUMBERS = TILE * TILE_COLUMNS };

/* ---- packed weights ------------------------------------------------------------------------- */

/* Scales of the rows; and for quants with an offset, the term to add to quant * scale. */
typedef struct {
    __m512 scale, origin;
} row_scales;

/* Quants of fewer than 8 bits become floats as the mantissa of OFFSET + quant. */
enum { OFFSET = 128, BITS_OF_OFFSET = 0x4300 /* in bfloat16 */ };

INLINE row_scales load_row_scales(const uint8_t *block, const super_block *super,
                                  packed_layout layout)
{
    block_scales scales;
    load_block_scales(block, 0, super, layout, 1, &scales);
    const int bits = multiplied_bits(layout);
    const int zero = layout.has_mins || bits == 8 ? 0 : 1 << (bits - 1);
    const int above_zero = bits == 8 ? 0 : OFFSET + zero;
    vector origin = scales.scale * (float)-above_zero; /* exact: scales have at most 19 bits */
    if (layout.has_mins)
        origin += scales.min;
    return (row_scales){(__m512)scales.scale, (__m512)origin};
}

/* Store pairs of numbers of each row, `first` and `second`, as one row of a tile. */
INLINE void store_pairs(__m512 first, __m512 second, uint16_t *to)
{
    const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(second, first);
    const __m512i places = pairs_of(
        _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
        _mm256_setr_epi16(16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31));
    _mm512_storeu_si512(to, _mm512_permutexvar_epi16(places, halves));
}

/* Store four columns of each row as two rows of a tile. */
INLINE void store_columns(byte_vector quants, row_scales scales, packed_layout layout,
                          uint16_t *to)
{
    for (int i = 0; i < 4; i += 2, to += TILE_COLUMNS) {
        __m512 columns[2];
        if (multiplied_bits(layout) == 8)
            for (int j = 0; j < 2; j++) {
                const __m512i left = _mm512_slli_epi32((__m512i)quants, 24 - 8 * (i + j));
                columns[j] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_srai_epi32(left, 24)),
                                           scales.scale);
            }
        else {
            const __m512i bytes = _mm512_set1_epi32((int32_t)(i ? 0x80038002 : 0x80018000));
            const __m512i lanes = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
            const __m512i pairs =
                _mm512_or_si512(_mm512_shuffle_epi8((__m512i)quants, _mm512_or_si512(bytes, lanes)),
                                _mm512_set1_epi16(BITS_OF_OFFSET));
            const __m512i upper = _mm512_set1_epi32((int32_t)0xffff0000);
            columns[0] = (__m512)_mm512_slli_epi32(pairs, 16);
            columns[1] = (__m512)_mm512_and_si512(pairs, upper);
            for (int j = 0; j < 2; j++)
                columns[j] = _mm512_fmadd_ps(columns[j], scales.scale, scales.origin);
        }
        store_pairs(columns[0], columns[1], to);
    }
}

/* Store `n_columns` of a panel as tiles, from a block on that begins a super-block, if there are
 * any. */
INLINE void unpack_tiles(const uint8_t *block, int64_t n_columns, packed_layout layout,
                         uint16_t *to)
{
    super_block super = {0};
    for (int64_t g = 0; g < n_columns / layout.group; g++, block += block_bytes(layout)) {
        prefetch_block(block + PREFETCH_AHEAD, layout);
        block = enter_block(block, g, 0, 1, layout, &super);
        const row_scales scales = load_row_scales(block, &super, layout);
        uint16_t *second = to + layout.group / 2 * TILE;
        for (int step = 0; step < layout.group / 8; step++) {
            byte_vector low, high;
            load_quants(block, step, 0, layout, &low, &high);
            store_columns(low, scales, layout, to + 4 * step * TILE);
            store_columns(high, scales, layout, second + 4 * step * TILE);
        }
        to += layout.group * TILE;
    }
}

#define UNPACK_TILES(bits, group, has_mins, super, is_iq4)                                         \
    unpack_tiles_w##bits##_##group##_##has_mins##_##super##_##is_iq4

#define DEFINE_UNPACK_TILES(...)                                                                   \
    static void UNPACK_TILES(__VA_ARGS__)(const uint8_t *block, int64_t n_columns, uint16_t *to)   \
    {                                                                                              \
        unpack_tiles(block, n_columns, (packed_layout){__VA_ARGS__}, to);                          \
    }
FOR_LAYOUTS(DEFINE_UNPACK_TILES)

/* ---- floats --------------------------------------------------------------------------------- */

/* Number of terms that add up to a weight: one bfloat16 has fewer bits than float16, two have
 * enough. */
enum { MAX_TERMS = 2 };

INLINE int n_terms(const matrix *w) { return w->type == WEIGHT_F16 ? 2 : 1; }

/* Load TILE_COLUMNS numbers of float16 as the first or the second term. */
INLINE __m512i load_term(const uint16_t *from, int term)
{
    const __m512 low = (__m512)load_f16(from), high = (__m512)load_f16(from + LANES);
    const __m512i first = (__m512i)_mm512_cvtne2ps_pbh(high, low);
    if (term == 0)
        return first;
    const __m256i none = _mm256_setzero_si256();
    const __m512 first_low = (__m512)pairs_of(none, first_half(first));
    const __m512 first_high = (__m512)pairs_of(none, second_half(first));
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_sub_ps(high, first_high),
                                        _mm512_sub_ps(low, first_low));
}

/* Store one term of `n_columns` of up to sixteen rows of floats as tiles; of fewer rows, the rest is
 * zeros. */
INLINE void transpose_tiles(const uint16_t *w, int n_rows, int64_t stride, int64_t n_columns,
                            int type, int term, uint16_t *to)
{
    for (int64_t i = 0; i < n_columns; i += TILE_COLUMNS, to += TILE_NUMBERS) {
        __m512i square[TILE];
        for (int r = 0; r < TILE; r++) {
            const uint16_t *row = w + r * stride + i;
            if (r >= n_rows)
                square[r] = _mm512_setzero_si512();
            else if (type == WEIGHT_F16)
                square[r] = load_term(row, term);
            else
                square[r] = _mm512_loadu_si512(row);
        }
        transpose_pairs(square);
        memcpy(to, square, sizeof square);
    }
}

/* ---- both ----------------------------------------------------------------------------------- */

/* Store one term of `n_columns` of a panel as tiles, from `start` on, which begins a super-block, if
 * there are any. */
static void store_tiles(const matrix *w, int64_t panel, int64_t start, int64_t n_columns, int term,
                        uint16_t *to)
{
#define NAME_UNPACK_TILES(...) UNPACK_TILES(__VA_ARGS__),
    static void (*const unpack[])(const uint8_t *block, int64_t n_columns, uint16_t *to) = {
        FOR_LAYOUTS(NAME_UNPACK_TILES)};
    if (w->type == PACKED) {
        const uint8_t *blocks = w->data + panel * panel_bytes(w);
        unpack[layout_index(w->layout)](
            blocks + panel_bytes_of(w->layout, start / w->layout.group), n_columns, to);
        return;
    }
    const int64_t row = panel * PANEL, n = w->n_columns;
    const int n_rows = (int)min(PANEL, w->n_rows - row);
    const uint16_t *weights = (const uint16_t *)w->data + row * n + start;
    if (w->type == WEIGHT_BF16)
        transpose_tiles(weights, n_rows, n, n_columns, WEIGHT_BF16, 0, to);
    else
        transpose_tiles(weights, n_rows, n, n_columns, WEIGHT_F16, term, to);
}

#endif
