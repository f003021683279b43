/* Products of a panel with a tile of activations, in vectors of LANES rows of weights; the formula
 * is in portable.c.
 *
 * Before including this, the level includes vectors.h and defines load_f16() and
 *
 *     VECTORS_AT_ONCE(n)   vectors of rows whose sums with n rows of activations fit in registers
 *     W8_IS_SIGNED         1 if W8 is multiplied as q, 0 if as q + 128
 *     split_nibbles(v, above, shift, bits, &low, &high)
 *                          splits W4; or W6, whose upper bits are those of `above` >> `shift`
 *     add_products(sums, low, high, x, n, n_vectors, bits)
 *                          adds, for row m of the activations, the products of the four bytes in
 *                          each lane of `low` with x + 8 * m, and of `high` with x + 8 * m + 4
 *
 * and, if those sums are in another order than (n, n_vectors) vectors, INTERLEAVES_SUMS,
 * interleave_sums() and deinterleave_sums().
 */

#ifndef PANEL_PRODUCT_H
#define PANEL_PRODUCT_H

#include "activation_tile.h"
#include "vectors.h"

#ifndef INTERLEAVES_SUMS
INLINE void interleave_sums(integer_vector sums[][PANEL_VECTORS], int n, int n_vectors)
{
    (void)sums, (void)n, (void)n_vectors;
}

INLINE void deinterleave_sums(integer_vector sums[][PANEL_VECTORS], int n, int n_vectors)
{
    (void)sums, (void)n, (void)n_vectors;
}
#endif

/* Load the scales or minima of a block for LANES rows, from `row` on. */
INLINE vector load_scales(const uint8_t *from, int row, vector super_scales, packed_layout layout)
{
    if (!layout.groups_per_super_block)
        return load_f16((const uint16_t *)from + row);
    return super_scales * load_int8((const int8_t *)from + row);
}

/* Load the quants of four columns of the first half of a group, and of four of the second: both
 * nibbles of a chunk, or two chunks of W8. */
INLINE void load_quants(const uint8_t *block, int step, int row, packed_layout layout,
                        byte_vector *low, byte_vector *high)
{
    const uint8_t *at = block + 4 * row;
    const byte_vector first = *(const byte_vector *)(at + step * CHUNK);
    if (layout.bits == 8) {
        const uint8_t flip = W8_IS_SIGNED ? 0x80 : 0;
        *low = first ^ flip;
        *high = *(const byte_vector *)(at + (step + layout.group / 8) * CHUNK) ^ flip;
        return;
    }
    byte_vector above = {0};
    if (layout.bits == 6)
        above = *(const byte_vector *)(at + upper_chunk(step, layout.group) * CHUNK);
    split_nibbles(first, above, upper_shift(step, layout.group), layout.bits, low, high);
}

/* Compute the integer sums of a block. */
INLINE void sum_block(const uint8_t *block, int row, tile_group x, packed_layout layout, int n,
                      int n_vectors, integer_vector sums[][PANEL_VECTORS])
{
    for (int m = 0; m < n; m++) {
        const int is_signed = layout.bits == 8 && W8_IS_SIGNED;
        const int32_t initial = is_signed ? 0 : initial_sum(x.w4_offsets[m], layout);
        for (int v = 0; v < n_vectors; v++)
            sums[m][v] = (integer_vector){0} + initial;
    }
    interleave_sums(sums, n, n_vectors);
    for (int step = 0; step < layout.group / 8; step++) {
        byte_vector low[PANEL_VECTORS], high[PANEL_VECTORS];
        for (int v = 0; v < n_vectors; v++)
            load_quants(block, step, row + v * LANES, layout, low + v, high + v);
        add_products(sums, low, high, x.quants + 8 * step * n, n, n_vectors, layout.bits);
    }
    deinterleave_sums(sums, n, n_vectors);
}

/* Bytes ahead of a block at which memory is read. The processor reads ahead by itself as far as one
 * row of activations needs; not while the products of several rows take longer than the memory. */
enum { PREFETCH_AHEAD = 2048 };

INLINE void prefetch_block(const uint8_t *block, packed_layout layout)
{
    for (int64_t at = 0; at < block_bytes(layout); at += CACHE_LINE)
        __builtin_prefetch(block + at);
}

/* Multiply `n_vectors` vectors of rows of a panel, from `row` on. */
INLINE void multiply_vectors(const uint8_t *block, int row, int n_vectors, int64_t n_groups,
                             const uint8_t *tile, float *out, int64_t out_stride,
                             packed_layout layout, int n)
{
    vector totals[MAX_TILE][PANEL_VECTORS];
    vector super_scales[PANEL_VECTORS] = {0}, super_mins[PANEL_VECTORS] = {0};
    for (int m = 0; m < n; m++)
        for (int v = 0; v < n_vectors; v++)
            totals[m][v] = (vector){0};
    for (int64_t g = 0; g < n_groups; g++, block += block_bytes(layout)) {
        if (row == 0) /* later vectors find the panel in the cache */
            prefetch_block(block + PREFETCH_AHEAD, layout);
        const tile_group x = tile_group_at(tile, g, layout.group, n);
        integer_vector sums[MAX_TILE][PANEL_VECTORS];
        if (begins_super_block(layout, g)) {
            const uint16_t *scales = (const uint16_t *)block + row;
            for (int v = 0; v < n_vectors; v++) {
                super_scales[v] = load_f16(scales + v * LANES);
                if (layout.has_mins)
                    super_mins[v] = load_f16(scales + PANEL + v * LANES);
            }
            block += super_scale_bytes(layout);
        }
        sum_block(block, row, x, layout, n, n_vectors, sums);
        const uint8_t *scales = block + quant_bytes(layout), *mins = scales + scale_bytes(layout);
        for (int v = 0; v < n_vectors; v++) {
            const vector scale = load_scales(scales, row + v * LANES, super_scales[v], layout);
            for (int m = 0; m < n; m++)
                totals[m][v] +=
                    __builtin_convertvector(sums[m][v], vector) * (scale * x.scales[m]);
        }
        for (int v = 0; v < n_vectors && layout.has_mins; v++) {
            const vector min = load_scales(mins, row + v * LANES, super_mins[v], layout);
            for (int m = 0; m < n; m++)
                totals[m][v] += min * x.sums[m];
        }
    }
    for (int m = 0; m < n; m++)
        for (int v = 0; v < n_vectors; v++)
            *(vector *)(out + m * out_stride + row + v * LANES) = totals[m][v];
}

INLINE void multiply_panel(const uint8_t *panel, int64_t n_groups, const uint8_t *tile, float *out,
                           int64_t out_stride, packed_layout layout, int n)
{
    const int n_vectors = VECTORS_AT_ONCE(n);
    for (int row = 0; row < PANEL; row += n_vectors * LANES)
        multiply_vectors(panel, row, n_vectors, n_groups, tile, out, out_stride, layout, n);
}

#endif
