/* The layout of tiles of activations, quantized to 8 bits.
 *
 * A few rows of activations make a tile: each loaded weight is multiplied with all of them while it
 * is in a register, with sixteen rows of weights in the lanes of a vector. Like a panel, a tile is
 * a run of groups, each in the order of reading: the quants, eight columns of each row at a time,
 * four of the first half of the group and four of the second, as in a byte of W4; the scales of the
 * rows; the sums x_scale * sum(x_q); and two rows of first sums, see below.
 *
 * Integer sums start from ROUNDING_BITS, so that they are the bits of the float ROUNDING + sum.
 * They need no conversion, since
 *
 *     scale * sum  =  scale * (ROUNDING + sum) - scale * ROUNDING
 *
 * is one fused multiply-add, and exact but for its rounding: scales have at most 19 bits, so that
 * scale * ROUNDING needs no rounding. In layouts without minima the quants are stored as q + 8, 16,
 * 32 or 128, and the sums start lower by as much times sum(x_q).
 */

#ifndef ACTIVATION_TILE_H
#define ACTIVATION_TILE_H

#include "packed.h"

enum { MAX_TILE = 16 }; /* rows; levels choose tile sizes up to it */

/* Numbers of 32 bits that a row has in a group besides its quants. */
enum { ROW_NUMBERS = 4 };

/* Bytes of one group of one row. */
INLINE int64_t tile_group_bytes(int group) { return group + ROW_NUMBERS * (int64_t)sizeof(float); }

/* Bytes of a quantized row. */
INLINE int64_t quantized_row_bytes(int64_t n_columns, int group)
{
    return n_columns / group * tile_group_bytes(group);
}

/* One group of a tile of `n` rows, or of some of them. */
typedef struct {
    int n;
    const int8_t *quants;
    const float *scales, *sums;
    const int32_t *first_sums, *wide_first_sums; /* of W4; of W6 in groups of 16, else of W8 */
} tile_group;

INLINE tile_group tile_group_at(const uint8_t *tile, int64_t g, int group, int n)
{
    const uint8_t *at = tile + g * n * tile_group_bytes(group);
    const float *floats = (const float *)(at + n * group);
    const int32_t *integers = (const int32_t *)floats;
    return (tile_group){n,          (const int8_t *)at, floats,
                        floats + n, integers + 2 * n,   integers + 3 * n};
}

/* Distance in columns at which tiles are prefetched, if they need not be in a private cache. */
enum { PREFETCHED_COLUMNS = 64 };

/* Prefetch a group of a tile, or memory behind it. */
INLINE void prefetch_group(const uint8_t *tile, int64_t g, int group, int n)
{
    const int64_t bytes = n * tile_group_bytes(group);
    for (int64_t at = 0; at < bytes; at += CACHE_LINE)
        __builtin_prefetch(tile + g * bytes + at);
}

/* The group's rows from `m` on. */
INLINE tile_group rows_from(tile_group x, int m)
{
    return (tile_group){x.n, x.quants + 8 * m, x.scales + m, x.sums + m, x.first_sums + m,
                        x.wide_first_sums + m};
}

/* The first sum of a row whose quants have the `sum`, in a layout of some bits without minima. */
INLINE int32_t first_sum_of(int32_t sum, int bits)
{
    return (int32_t)(ROUNDING_BITS - ((uint32_t)sum << (bits - 1)));
}

/* Store the numbers of row `m` of a group besides its quants. */
INLINE void store_row_numbers(float *floats, int group, int n, int m, float scale, int32_t sum)
{
    int32_t *integers = (int32_t *)floats;
    floats[m] = scale;
    floats[n + m] = scale * (float)sum;
    integers[2 * n + m] = first_sum_of(sum, 4);
    integers[3 * n + m] = first_sum_of(sum, group == 16 ? 6 : 8);
}

/* The first sum of row `m`. */
INLINE int32_t first_sum(tile_group x, int m, packed_layout layout)
{
    if (layout.has_mins)
        return ROUNDING_BITS;
    if (multiplied_bits(layout) > 5)
        return x.wide_first_sums[m];
    const int32_t of_w4 = x.first_sums[m];
    return layout.bits == 4 ? of_w4 : of_w4 + (of_w4 - ROUNDING_BITS);
}

/* Load four neighbouring quants as one integer, to broadcast to all lanes. */
INLINE int32_t load_four_quants(const int8_t *x)
{
    int32_t four;
    memcpy(&four, x, 4);
    return four;
}

#endif
