/* Rows of activations, rounded to 8 bits, as a product reads them.
 *
 * A few rows of activations make a tile: each weight that is loaded meets all of them while they
 * are in registers, its sixteen rows in the lanes of a vector. A tile is a run of groups as a panel
 * is, in the order in which it is read: by four columns the quants of each row, then the scales of
 * the rows, the sums x_scale * sum(x_q), and -8 * sum(x_q): what the integer sum
 * of W4 without minima begins with, as its weights are stored as q + 8.
 */

#ifndef TILES_H
#define TILES_H

#include "packed.h"

enum { MAX_TILE = 12 };

static const int SIZES[] = {1, 2, 4, 8, MAX_TILE};

/* How many of SIZES there are: twelve rows fit into the registers of AVX-512 only. */
static const int N_SIZES[] = {3, 3, 5};

/* Which of SIZES the next tile has. */
INLINE int index_of_size(int n_left, int level)
{
    int index = N_SIZES[level] - 1;
    while (SIZES[index] > n_left)
        index--;
    return index;
}

/* Bytes that one group of one row takes in a tile. */
INLINE int64_t group_bytes(int group) { return group + 3 * (int64_t)sizeof(float); }

/* One group of a tile of `n` rows. */
typedef struct {
    const int8_t *quants;
    const float *scales, *sums;
    const int32_t *begin;
} tile_group;

INLINE tile_group group_of(const uint8_t *tile, int64_t g, int group, int n)
{
    const uint8_t *at = tile + g * n * group_bytes(group);
    const float *floats = (const float *)(at + n * group);
    return (tile_group){(const int8_t *)at, floats, floats + n, (const int32_t *)floats + 2 * n};
}

/* A panel of `groups` blocks times a tile, into `out` (n, PANEL), with `out_row` floats from one row
 * to the next. */
typedef void dot_function(const uint8_t *panel, int64_t groups, const uint8_t *tile, float *out,
                          int64_t out_row);

/* dots.c: those for a matrix, by the number of SIZES. */
dot_function *const *dots_of(const packed_matrix *w, int level);

#endif
