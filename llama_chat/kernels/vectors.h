/* Vectors of the width of a register, LANES floats.
 *
 * The level defines LANES before including this. Compilers split vectors that are wider than a
 * register in memory, and a narrower vector leaves a part of the register unused.
 */

#ifndef VECTORS_H
#define VECTORS_H

#include "numbers.h"

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t bf16_vector __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef uint32_t bits_vector __attribute__((vector_size(4 * LANES)));
typedef int32_t integer_vector __attribute__((vector_size(4 * LANES)));

/* Load LANES numbers in bfloat16. For the narrowest registers a vector type is faster than a loop
 * that widens integers, which compilers turn into one instruction for the others. */
INLINE vector load_bf16(const uint16_t *from)
{
    uint32_t loaded[LANES];
    bits_vector numbers;
    for (int i = 0; i < LANES; i++)
        loaded[i] = from[i];
    memcpy(&numbers, loaded, sizeof numbers);
    if (LANES == 4)
        numbers = __builtin_convertvector(*(const bf16_vector *)from, bits_vector);
    return (vector)(numbers << 16);
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
