/* Reading of the blocks of a panel, in vectors of LANES rows of weights.
 *
 * Before including this, the level includes vectors.h and defines load_f16() and
 *
 *     W8_IS_SIGNED         1 if W8 is multiplied as q, 0 if as q + 128
 *     split_nibbles(v, above, shift, mask, &low, &high)
 *                          splits W4; or W5 and W6, with upper bits `above` >> `shift` & `mask`
 *     look_up(v)           replaces places in IQ4_TABLE by what is there
 *     multiply_add(a, b, c)
 *                          a * b + c, rounded once
 */

#ifndef PANEL_BLOCKS_H
#define PANEL_BLOCKS_H

#include "activation_tile.h"
#include "vectors.h"

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
    const uint8_t flip = W8_IS_SIGNED ? 0x80 : 0;
    if (layout.bits == 8) {
        *low = first ^ flip;
        *high = *(const byte_vector *)(at + (step + layout.group / 8) * CHUNK) ^ flip;
        return;
    }
    byte_vector above = {0};
    if (upper_bits(layout))
        above = *(const byte_vector *)(at + upper_chunk(layout) * CHUNK);
    split_nibbles(first, above, upper_shift(step, layout), upper_bits(layout), low, high);
    if (layout.is_iq4) {
        *low = look_up(*low) ^ flip;
        *high = look_up(*high) ^ flip;
    }
}

/* Prefetch distance in bytes. For one row of activations the hardware prefetches far enough; for
 * several rows it does not, since their products take longer than the memory. */
enum { PREFETCH_AHEAD = 4096 };

INLINE void prefetch_block(const uint8_t *block, packed_layout layout)
{
    for (int64_t at = 0; at < block_bytes(layout); at += CACHE_LINE)
        __builtin_prefetch(block + at);
}

/* Scales and minima of a super-block. */
typedef struct {
    vector scales[PANEL_VECTORS], mins[PANEL_VECTORS];
} super_block;

/* Return the block of group `g`, after the scales of the super-block that begins at `at`, if one
 * does: they are loaded for `n_vectors` vectors of rows, from `row` on. */
INLINE const uint8_t *enter_block(const uint8_t *at, int64_t g, int row, int n_vectors,
                                  packed_layout layout, super_block *super)
{
    if (!begins_super_block(layout, g))
        return at;
    const uint16_t *scales = (const uint16_t *)at + row;
    for (int v = 0; v < n_vectors; v++) {
        super->scales[v] = load_f16(scales + v * LANES);
        if (layout.has_mins)
            super->mins[v] = load_f16(scales + PANEL + v * LANES);
    }
    return at + super_scale_bytes(layout);
}

/* Scales and minima of a block for LANES rows; and scale * -ROUNDING, the origin of scaled sums. */
typedef struct {
    vector scale, origin, min;
} block_scales;

/* Load those of `n_vectors` vectors of rows, from `row` on. */
INLINE void load_block_scales(const uint8_t *block, int row, const super_block *super,
                              packed_layout layout, int n_vectors, block_scales *to)
{
    const uint8_t *scales = block + quant_bytes(layout), *mins = scales + scale_bytes(layout);
    for (int v = 0; v < n_vectors; v++) {
        to[v].scale = load_scales(scales, row + v * LANES, super->scales[v], layout);
        to[v].origin = to[v].scale * -ROUNDING;
        if (layout.has_mins)
            to[v].min = load_scales(mins, row + v * LANES, super->mins[v], layout);
    }
}

/* Add the integer sums of a block, as bits of floats, times its scales; and its minima. */
INLINE void add_scaled_sums(vector totals[][MAX_VECTORS], integer_vector sums[][MAX_VECTORS],
                            const block_scales *scales, tile_group x, packed_layout layout, int n,
                            int n_vectors)
{
    for (int v = 0; v < n_vectors; v++) {
        const vector scale = scales[v].scale, origin = scales[v].origin;
        UNROLL(MAX_TILE)
        for (int m = 0; m < n; m++)
            totals[m][v] += multiply_add((vector)sums[m][v], scale, origin) * x.scales[m];
    }
    for (int v = 0; v < n_vectors && layout.has_mins; v++) {
        UNROLL(MAX_TILE)
        for (int m = 0; m < n; m++)
            totals[m][v] += scales[v].min * x.sums[m];
    }
}

/* ---- unpacked groups -------------------------------------------------------------------------- */

/* Bytes of an unpacked group: the quants that are multiplied, a byte each, in the order of reading;
 * the scales, the origins and, in layouts with minima, those, as floats. */
INLINE int64_t unpacked_bytes(packed_layout layout)
{
    return PANEL * (layout.group + (layout.has_mins ? 3 : 2) * (int64_t)sizeof(float));
}

/* Rows from PANEL on are those of the second panel. */
INLINE void load_unpacked(const uint8_t *group, int step, int row, byte_vector *low,
                          byte_vector *high)
{
    const uint8_t *panel = group + row / PANEL * UNPACKED_BYTES;
    const uint8_t *at = panel + 2 * step * CHUNK + 4 * (row % PANEL);
    *low = *(const byte_vector *)at;
    *high = *(const byte_vector *)(at + CHUNK);
}

INLINE void load_unpacked_scales(const uint8_t *group, int row, packed_layout layout,
                                 int n_vectors, block_scales *to)
{
    for (int v = 0; v < n_vectors; v++, row += LANES) {
        const uint8_t *panel = group + row / PANEL * UNPACKED_BYTES;
        const float *scales = (const float *)(panel + PANEL * layout.group) + row % PANEL;
        to[v].scale = *(const vector *)scales;
        to[v].origin = *(const vector *)(scales + PANEL);
        if (layout.has_mins)
            to[v].min = *(const vector *)(scales + 2 * PANEL);
    }
}

/* Store a block unpacked. */
INLINE void store_unpacked(const uint8_t *block, const block_scales *scales, packed_layout layout,
                           uint8_t *to)
{
    for (int step = 0; step < layout.group / 8; step++, to += 2 * CHUNK)
        for (int v = 0; v < PANEL_VECTORS; v++) {
            const int row = v * LANES;
            load_quants(block, step, row, layout, (byte_vector *)(to + 4 * row),
                        (byte_vector *)(to + CHUNK + 4 * row));
        }
    float *floats = (float *)to;
    for (int v = 0; v < PANEL_VECTORS; v++) {
        *(vector *)(floats + v * LANES) = scales[v].scale;
        *(vector *)(floats + PANEL + v * LANES) = scales[v].origin;
        if (layout.has_mins)
            *(vector *)(floats + 2 * PANEL + v * LANES) = scales[v].min;
    }
}

#endif
