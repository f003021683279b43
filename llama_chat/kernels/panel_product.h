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
INLINE void interleave_sums(integer_vector sums[][MAX_VECTORS], int n, int n_vectors)
{
    (void)sums, (void)n, (void)n_vectors;
}

INLINE void deinterleave_sums(integer_vector sums[][MAX_VECTORS], int n, int n_vectors)
{
    (void)sums, (void)n, (void)n_vectors;
}
#endif

/* Compute the integer sums of a block, as bits of floats: see activation_tile.h. */
INLINE void sum_block(const uint8_t *block, int row, tile_group x, packed_layout layout,
                      int is_unpacked, int n, int n_vectors, integer_vector sums[][MAX_VECTORS])
{
    for (int m = 0; m < n; m++) {
        const int is_centred = multiplied_bits(layout) == 8 && W8_IS_SIGNED;
        const int32_t first = is_centred ? ROUNDING_BITS : first_sum(x, m, layout);
        for (int v = 0; v < n_vectors; v++)
            sums[m][v] = (integer_vector){0} + first;
    }
    interleave_sums(sums, n, n_vectors);
    UNROLL(MAX_GROUP / 8)
    for (int step = 0; step < layout.group / 8; step++) {
        byte_vector low[MAX_VECTORS], high[MAX_VECTORS];
        for (int v = 0; v < n_vectors; v++)
            if (is_unpacked)
                load_unpacked(block, step, row + v * LANES, low + v, high + v);
            else
                load_quants(block, step, row + v * LANES, layout, low + v, high + v);
        add_products(sums, low, high, x.quants + 8 * step * x.n, n, n_vectors,
                     multiplied_bits(layout));
    }
    deinterleave_sums(sums, n, n_vectors);
}

/* Multiply `n_vectors` vectors of rows of a panel, from `row` on, and store them in
 * out (n, PANEL), whose rows are `out_stride` floats apart. */
INLINE void multiply_vectors(const uint8_t *block, int row, int n_vectors, int64_t n_groups,
                             const uint8_t *tile, float *out, int64_t out_stride,
                             packed_layout layout, int n)
{
    vector totals[MAX_TILE][MAX_VECTORS] = {{{0}}};
    super_block super = {0};
    if (n_groups < 1)
        __builtin_unreachable(); /* so that GCC keeps no totals in memory for that case */
    for (int64_t g = 0; g < n_groups; g++, block += block_bytes(layout)) {
        const tile_group x = tile_group_at(tile, g, layout.group, n);
        integer_vector sums[MAX_TILE][MAX_VECTORS];
        block_scales scales[MAX_VECTORS];
        if (row == 0) /* later vectors find the panel in the cache */
            prefetch_block(block + PREFETCH_AHEAD, layout);
        block = enter_block(block, g, row, n_vectors, layout, &super);
        sum_block(block, row, x, layout, 0, n, n_vectors, sums);
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
        multiply_vectors(panel, row, n_vectors, n_groups, tile, out, out_stride, layout, n);
}

/* Unpack some groups of a panel, from a block on that begins a super-block, if there are any. */
INLINE void unpack_groups(const uint8_t *block, int64_t n_groups, packed_layout layout,
                          uint8_t *to)
{
    super_block super = {0};
    for (int64_t g = 0; g < n_groups; g++, block += block_bytes(layout)) {
        block_scales scales[MAX_VECTORS];
        block = enter_block(block, g, 0, PANEL_VECTORS, layout, &super);
        load_block_scales(block, 0, &super, layout, PANEL_VECTORS, scales);
        store_unpacked(block, scales, layout, to + g * unpacked_bytes(layout));
    }
}

/* Multiply `n_vectors` vectors of rows of unpacked groups, from `row` on, with `n` of the
 * `tile_rows`, from `m` on. */
INLINE void multiply_unpacked_vectors(const unpacked_tile *operands, int tile_rows, int row,
                                      int n_vectors, int m, int n, packed_layout layout)
{
    const int width = PANELS_AT_ONCE * PANEL;
    const int is_first = row == 0 && m == 0;
    const int is_last = row + n_vectors * LANES == width && m + n == tile_rows;
    const int lines_per_group = is_last ? operands->lines_per_group : 0;
    const uint8_t *groups = operands->groups, *ahead = operands->ahead;
    float *out = operands->out + m * width + row;
    vector totals[MAX_TILE][MAX_VECTORS];
    if (operands->n_groups < 1)
        __builtin_unreachable();
    for (int i = 0; i < n; i++)
        for (int v = 0; v < n_vectors; v++)
            totals[i][v] = operands->adds ? *(const vector *)(out + i * width + v * LANES)
                                          : (vector){0};
    for (int64_t g = 0; g < operands->n_groups; g++, groups += unpacked_bytes(layout)) {
        const tile_group x =
            rows_from(tile_group_at(operands->tile, g, layout.group, tile_rows), m);
        integer_vector sums[MAX_TILE][MAX_VECTORS];
        block_scales scales[MAX_VECTORS];
        if (is_first)
            prefetch_group(operands->tile, g + PREFETCHED_COLUMNS / layout.group, layout.group,
                           tile_rows);
        for (int i = 0; i < lines_per_group; i++, ahead += CACHE_LINE)
            __builtin_prefetch(ahead, 0, 2);
        sum_block(groups, row, x, layout, 1, n, n_vectors, sums);
        load_unpacked_scales(groups, row, layout, n_vectors, scales);
        add_scaled_sums(totals, sums, scales, x, layout, n, n_vectors);
    }
    for (int i = 0; i < n; i++)
        for (int v = 0; v < n_vectors; v++)
            *(vector *)(out + i * width + v * LANES) = totals[i][v];
}

/* Multiply unpacked groups with a tile of `tile_rows`. The sums of two panels with half of the rows
 * fit in as many registers as those of one with all, and load half as much. What is prefetched comes
 * from the last-level cache during the first part, and from memory during the last. */
INLINE void multiply_unpacked(const unpacked_tile *operands, int tile_rows, packed_layout layout)
{
    const int n = tile_rows / PANELS_AT_ONCE;
    const int n_vectors = PANELS_AT_ONCE > 1 ? MAX_VECTORS : VECTORS_AT_ONCE(n);
    for (int m = 0; m < tile_rows; m += n)
        for (int row = 0; row < PANELS_AT_ONCE * PANEL; row += n_vectors * LANES)
            multiply_unpacked_vectors(operands, tile_rows, row, n_vectors, m, n, layout);
}

#endif
