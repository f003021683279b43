/* Transposition of pairs of 16-bit numbers, in vectors of AVX-512. */

#ifndef PAIR_TRANSPOSITION_H
#define PAIR_TRANSPOSITION_H

#include "numbers.h"

/* Pairs of a vector, and vectors of a square. */
enum { SQUARE = 16 };

/* In squares of 2 * `half` pairs a side, exchange the upper right and the lower left. */
INLINE void exchange(__m512i rows[SQUARE], int half)
{
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i step = _mm512_set1_epi32(half), sixteen = _mm512_set1_epi32(SQUARE);
    const __mmask16 is_right = _mm512_test_epi32_mask(lane, step);
    const __m512i below = _mm512_add_epi32(lane, sixteen);
    const __m512i upper = _mm512_mask_sub_epi32(lane, is_right, below, step);
    const __m512i lower = _mm512_mask_mov_epi32(_mm512_add_epi32(lane, step), is_right, below);
    for (int i = 0; i < SQUARE; i++)
        if (!(i & half)) {
            const __m512i a = rows[i], b = rows[i + half];
            rows[i] = _mm512_permutex2var_epi32(a, upper, b);
            rows[i + half] = _mm512_permutex2var_epi32(a, lower, b);
        }
}

/* Transpose a square of pairs in place. */
INLINE void transpose_pairs(__m512i rows[SQUARE])
{
    for (int half = 1; half < SQUARE; half *= 2)
        exchange(rows, half);
}

/* Pair the numbers of two vectors. */
INLINE __m512i pairs_of(__m256i even, __m256i odd)
{
    return _mm512_or_si512(_mm512_cvtepu16_epi32(even),
                           _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
}

/* Halves of a vector. */
INLINE __m256i first_half(__m512i v) { return _mm512_castsi512_si256(v); }
INLINE __m256i second_half(__m512i v) { return _mm512_extracti64x4_epi64(v, 1); }

#endif
