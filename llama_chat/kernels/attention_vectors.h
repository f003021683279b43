/* Vectors of the width of a register, LANES floats, for the inner loops of attention.
 *
 * The level defines LANES before including this. Compilers split vectors that are wider than a
 * register in memory, and a narrower vector leaves a part of the register unused.
 */

#ifndef ATTENTION_VECTORS_H
#define ATTENTION_VECTORS_H

#include "kv_cache_rows.h"

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t bf16_vector __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef uint32_t bits_vector __attribute__((vector_size(4 * LANES)));
typedef int32_t integer_vector __attribute__((vector_size(4 * LANES)));

/* Accumulator registers of a tile, about half of all registers. */
enum { N_SUMS = LANES == 16 ? 16 : 8 };

/* Load LANES numbers of a row, from number `at` on; those of INT8 without their scale.
 *
 * Compilers turn a loop that widens to integers into one instruction, but a vector type or a loop
 * to floats into many. For the narrowest registers a vector type is faster.
 */
INLINE vector load(const char *row, int64_t at, int kind)
{
    row += at * kind_bytes(kind);
    if (kind == FLOAT32)
        return *(const vector *)row;
    uint32_t loaded[LANES];
    bits_vector numbers;
    for (int i = 0; i < LANES; i++)
        loaded[i] = kind == BFLOAT16 ? ((const uint16_t *)row)[i]
                                     : (uint32_t)((const int8_t *)row)[i];
    memcpy(&numbers, loaded, sizeof numbers);
    if (LANES == 4 && kind == BFLOAT16)
        numbers = __builtin_convertvector(*(const bf16_vector *)row, bits_vector);
    return kind == BFLOAT16 ? (vector)(numbers << 16)
                            : __builtin_convertvector((integer_vector)numbers, vector);
}

/* Sum all lanes, by halves. */
INLINE float horizontal_sum(vector v)
{
    typedef float vector_4 __attribute__((vector_size(16), aligned(4), may_alias));
    vector_4 sum, halves[2];
#if LANES == 16
    typedef float vector_8 __attribute__((vector_size(32), aligned(4), may_alias));
    vector_8 wide[2];
    memcpy(wide, &v, sizeof v);
    wide[0] += wide[1];
    memcpy(halves, wide, sizeof halves);
    sum = halves[0] + halves[1];
#elif LANES == 8
    memcpy(halves, &v, sizeof v);
    sum = halves[0] + halves[1];
#else
    (void)halves;
    sum = v;
#endif
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

#endif
