/* The layout of tiles of activations, quantized to 8 bits.
 *
 * A few rows of activations make a tile: each loaded weight is multiplied with all of them while it
 * is in a register, with sixteen rows of weights in the lanes of a vector. Like a panel, a tile is
 * a run of groups, each in the order of reading: the quants, eight columns of each row at a time,
 * four of the first half of the group and four of the second, as in a byte of W4; the scales of the
 * rows; the sums x_scale * sum(x_q); and -8 * sum(x_q), the initial value of the integer sum of W4
 * without minima, whose weights are stored as q + 8. (AMX reads tiles of sixteen rows with the
 * quants of each row together.)
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
    const int32_t *w4_offsets;
} tile_group;

INLINE tile_group tile_group_at(const uint8_t *tile, int64_t g, int group, int n)
{
    const uint8_t *at = tile + g * n * tile_group_bytes(group);
    const float *floats = (const float *)(at + n * group);
    return (tile_group){(const int8_t *)at, floats, floats + n, (const int32_t *)floats + 2 * n};
}

/* Shift to the left from the initial value of the integer sum of W4 to that of a layout. It subtracts
 * the offset of quants (8, 16, 32 or 128), which are unsigned; in layouts with minima it is zero. */
INLINE int initial_shift(packed_layout layout) { return multiplied_bits(layout) - 4; }

/* Load four neighbouring quants as one integer, to broadcast to all lanes. */
INLINE int32_t load_four_quants(const int8_t *x)
{
    int32_t four;
    memcpy(&four, x, 4);
    return four;
}

#endif
