/* Scores of a few queries for transposed keys, for any instruction set; see decode_attention.h. */

#ifndef TRANSPOSED_KEYS_H
#define TRANSPOSED_KEYS_H

#include "attention.h"
#include "transposition.h"
#include "vectors.h"

/* True if many queries are multiplied with transposed keys: with each key in a lane of its own, no
 * lanes are summed. Other levels have too few registers for it, or sum lanes faster. */
INLINE int transposes_keys(int64_t width)
{
    return X86 && LANES == 16 && REGISTERS == 32 && (width == 64 || width == 128);
}

/* The lane that comes `i`-th if lanes are added pairwise as lane_sums() does: first those that are
 * half a vector apart. */
INLINE int lane_in_order(int i)
{
    int lane = 0;
    for (int bit = 1; bit < LANES; bit *= 2)
        lane += i & bit ? LANES / 2 / bit : 0;
    return lane;
}

/* Add `sums` of one lane to those of the lanes before it, of which subtotals[k] are those of 2^k. */
INLINE void add_lane(vector *sums, vector subtotals[][QUERY_BATCH], int lane, int n_queries)
{
    int k = 0;
    UNROLL(4)
    for (; lane >> k & 1; k++)
        for (int i = 0; i < n_queries; i++)
            sums[i] += subtotals[k][i];
    for (int i = 0; i < n_queries; i++)
        subtotals[k][i] = sums[i];
}

/* Compute the scores (n_queries, MAX_SPLIT) for LANES keys, transposed (width, LANES): those of
 * multiply_keys(), bit for bit, in its order. */
INLINE void multiply_transposed(const float *const *queries, int n_queries, const float *keys,
                                int64_t width, float *scores)
{
    enum { LEVELS = LANES == 16 ? 4 : LANES == 8 ? 3 : 2 };
    vector subtotals[LEVELS + 1][QUERY_BATCH];
    UNROLL(16)
    for (int i = 0; i < LANES; i++) {
        vector sums[QUERY_BATCH] = {0};
        UNROLL(8)
        for (int64_t at = lane_in_order(i); at < width; at += LANES)
            for (int q = 0; q < n_queries; q++)
                sums[q] += queries[q][at] * *(const vector *)(keys + at * LANES);
        add_lane(sums, subtotals, i, n_queries);
    }
    for (int q = 0; q < n_queries; q++)
        *(vector *)(scores + q * MAX_SPLIT) = subtotals[LEVELS][q];
}

/* Compute the scores (n_queries, MAX_SPLIT) for `n` keys, transposed in blocks of LANES rows. */
INLINE void score_blocks(const float *const *queries, int n_queries, const float *keys, int64_t n,
                         int64_t width, float *scores)
{
    for (int64_t r = 0; r < n; r += LANES, keys += LANES * width)
        if (width == 64) /* a constant for the compiler */
            multiply_transposed(queries, n_queries, keys, 64, scores + r);
        else
            multiply_transposed(queries, n_queries, keys, 128, scores + r);
}

/* Transpose a block of LANES rows, `rows` (LANES, width), in place. */
INLINE void transpose_block(float *rows, int64_t width)
{
    vector columns[8 * LANES];
    for (int64_t d = 0; d < width; d += LANES) {
        vector square[LANES];
        for (int i = 0; i < LANES; i++)
            square[i] = *(const vector *)(rows + i * width + d);
        transpose(square);
        memcpy(columns + d, square, sizeof square);
    }
    memcpy(rows, columns, sizeof(float) * (size_t)(LANES * width));
}

#endif
