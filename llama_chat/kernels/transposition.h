/* Transposition of squares of LANES rows and columns, in registers. */

#ifndef TRANSPOSITION_H
#define TRANSPOSITION_H

#include "vectors.h"

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (integer_vector){__VA_ARGS__})
#endif

/* Interleave the first halves of two vectors, and their second halves. */
#if LANES == 16
#define INTERLEAVE_LOW(a, b)                                                                       \
    SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define INTERLEAVE_HIGH(a, b)                                                                      \
    SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#elif LANES == 8
#define INTERLEAVE_LOW(a, b) SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define INTERLEAVE_HIGH(a, b) SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#else
#define INTERLEAVE_LOW(a, b) SHUFFLE(a, b, 0, 4, 1, 5)
#define INTERLEAVE_HIGH(a, b) SHUFFLE(a, b, 2, 6, 3, 7)
#endif

/* Transpose a square. Interleaving each row with the one half a square below moves one bit of the
 * row's number to where the column's was; for all bits, rows and columns have changed places. */
INLINE void transpose(vector rows[LANES])
{
    for (int n = 1; n < LANES; n *= 2) {
        vector from[LANES];
        for (int i = 0; i < LANES; i++)
            from[i] = rows[i];
        for (int i = 0; i < LANES / 2; i++) {
            rows[2 * i] = INTERLEAVE_LOW(from[i], from[i + LANES / 2]);
            rows[2 * i + 1] = INTERLEAVE_HIGH(from[i], from[i + LANES / 2]);
        }
    }
}

#endif
