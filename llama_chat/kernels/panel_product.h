/* Products of a panel with a tile of activations, in vectors of LANES rows of weights; the formula
 * is in portable.c.
 *
 * Before including this, the level defines what panel_blocks.h needs, and
 *
 *     VECTORS_AT_ONCE(n)   vectors of rows whose sums with n rows of activations fit in registers
 *     add_products(sums, low, high, x, n, n_vectors, bits)
 *                          adds, for row m of the activations, the products of the four bytes in
 *                          each lane of `low` with x + 8 * m, and of `high` with x + 8 * m + 4
 *
 * and, if those sums are in another order than (n, n_vectors) vectors, INTERLEAVES_SUMS,
 * interleave_sums() and deinterleave_sums().
 */

#ifndef PANEL_PRODUCT_H
#define PANEL_PRODUCT_H

#include "panel_blocks.h"

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

/* Compute the integer sums of a block, as bits of floats: see activation_tile.h. */
INLINE void sum_block(const uint8_t *block, int row, tile_group x, packed_layout layout,
                      int is_unpacked, int n, int n_vectors, integer_vector sums[][PANEL_VECTORS])
{
    for (int m = 0; m < n; m++) {
        const int is_centred = multiplied_bits(layout) == 8 && W8_IS_SIGNED;
        const int32_t first = is_centred ? ROUNDING_BITS : first_sum(x, m, layout);
        for (int v = 0; v < n_vectors; v++)
            sums[m][v] = (integer_vector){0} + first;
    }
    interleave_sums(sums, n, n_vectors);
    for (int step = 0; step < layout.group / 8; step++) {
        byte_vector low[PANEL_VECTORS], high[PANEL_VECTORS];
        for (int v = 0; v < n_vectors; v++)
            if (is_unpacked)
                load_unpacked(block, step, row + v * LANES, low + v, high + v);
            else
                load_quants(block, step, row + v * LANES, layout, low + v, high + v);
        add_products(sums, low, high, x.quants + 8 * step * n, n, n_vectors,
                     multiplied_bits(layout));
    }
    deinterleave_sums(sums, n, n_vectors);
}

/* Multiply `n_vectors` vectors of rows of a panel, from `row` on, or of unpacked groups; and store
 * them in out (n, PANEL), whose rows are `out_stride` floats apart, or add to it. */
INLINE void multiply_vectors(const uint8_t *block, int row, int n_vectors, int64_t n_groups,
                             const uint8_t *tile, float *out, int64_t out_stride, int adds,
                             packed_layout layout, int is_unpacked, int n)
{
    const int64_t bytes = is_unpacked ? unpacked_bytes(layout) : block_bytes(layout);
    vector totals[MAX_TILE][PANEL_VECTORS];
    super_block super = {0};
    if (n_groups < 1)
        __builtin_unreachable(); /* so that GCC keeps no totals in memory for that case */
    for (int m = 0; m < n; m++)
        for (int v = 0; v < n_vectors; v++)
            totals[m][v] = adds ? *(const vector *)(out + m * out_stride + row + v * LANES)
                                : (vector){0};
    for (int64_t g = 0; g < n_groups; g++, block += bytes) {
        const tile_group x = tile_group_at(tile, g, layout.group, n);
        integer_vector sums[MAX_TILE][PANEL_VECTORS];
        block_scales scales[PANEL_VECTORS];
        if (row == 0 && !is_unpacked) /* later vectors find the panel in the cache */
            prefetch_block(block + PREFETCH_AHEAD, layout);
        if (!is_unpacked)
            block = enter_block(block, g, row, n_vectors, layout, &super);
        sum_block(block, row, x, layout, is_unpacked, n, n_vectors, sums);
        if (is_unpacked)
            load_unpacked_scales(block, row, layout, n_vectors, scales);
        else
            load_block_scales(block, row, &super, layout, n_vectors, scales);
        add_scaled_sums(totals, sums, scales, x, layout, n, n_vectors);
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
        multiply_vectors(panel, row, n_vectors, n_groups, tile, out, out_stride, 0, layout, 0, n);
}

/* Unpack some groups of a panel, from a block on that begins a super-block, if there are any. */
INLINE void unpack_groups(const uint8_t *block, int64_t n_groups, packed_layout layout,
                          uint8_t *to)
{
    super_block super = {0};
    for (int64_t g = 0; g < n_groups; g++, block += block_bytes(layout)) {
        block_scales scales[PANEL_VECTORS];
        block = enter_block(block, g, 0, PANEL_VECTORS, layout, &super);
        load_block_scales(block, 0, &super, layout, PANEL_VECTORS, scales);
        store_unpacked(block, scales, layout, to + g * unpacked_bytes(layout));
    }
}

/* Multiply unpacked groups with a tile, and store (n, PANEL) or add to it. */
INLINE void multiply_unpacked(const uint8_t *groups, int64_t n_groups, const uint8_t *tile,
                              float *out, int adds, packed_layout layout, int n)
{
    const int n_vectors = VECTORS_AT_ONCE(n);
    for (int row = 0; row < PANEL; row += n_vectors * LANES)
        multiply_vectors(groups, row, n_vectors, n_groups, tile, out, PANEL, adds, layout, 1, n);
}

#endif
