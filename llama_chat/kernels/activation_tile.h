/* The layout of tiles of activations, quantized to 8 bits.
 *
 * A few rows of activations make a tile: each loaded weight is multiplied with all of them while it
 * is in a register, with sixteen rows of weights in the lanes of a vector. Like a panel, a tile is
 * a run of groups, each in the order of reading: the quants, eight columns of each row at a time,
 * four of the first half of the group and four of the second, as in a byte of W4; the scales of the
 * rows; the sums x_scale * sum(x_q); and the offsets, initial values of the integer sums in layouts
 * without minima, whose quants are stored as q + 8, 16, 32 or 128: -8 * sum(x_q) in groups of 32, as
 * W4 needs them, and -32 * sum(x_q) in groups of 16, for W6. (AMX reads tiles of sixteen rows with
 * the quants of each row together.)
 */

#ifndef ACTIVATION_TILE_H
#define ACTIVATION_TILE_H

#include "packed.h"

enum { MAX_TILE = 16 }; /* rows; levels choose tile sizes up to it */

/* Bytes of one group of one row. */
INLINE int64_t tile_group_bytes(int group) { return group + 3 * (int64_t)sizeof(float); }

/* Bytes of a quantized row. */
INLINE int64_t quantized_row_bytes(int64_t n_columns, int group)
{
    return n_columns / group * tile_group_bytes(group);
}

/* One group of a tile of `n` rows. */
typedef struct {
    const int8_t *quants;
    const float *scales, *sums;
    const int32_t *offsets;
} tile_group;

INLINE tile_group tile_group_at(const uint8_t *tile, int64_t g, int group, int n)
{
    const uint8_t *at = tile + g * n * tile_group_bytes(group);
    const float *floats = (const float *)(at + n * group);
    return (tile_group){(const int8_t *)at, floats, floats + n, (const int32_t *)floats + 2 * n};
}

/* Bits of the layout whose offsets the tiles of a group have. */
INLINE int offset_bits(int group) { return group == 16 ? 6 : 4; }

INLINE int32_t offset_of(int32_t sum, int group) { return -(1 << (offset_bits(group) - 1)) * sum; }

/* Shift to the left from the offsets of a tile to those of a layout without minima; to the right if
 * it is negative. */
INLINE int offset_shift(packed_layout layout)
{
    return multiplied_bits(layout) - offset_bits(layout.group);
}

INLINE int32_t shifted(int32_t i, int n) { return n < 0 ? i / (1 << -n) : i * (1 << n); }

/* Load four neighbouring quants as one integer, to broadcast to all lanes. */
INLINE int32_t load_four_quants(const int8_t *x)
{
    int32_t four;
    memcpy(&four, x, 4);
    return four;
}

#endif
