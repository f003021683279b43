/* Vectors of the width of a register, LANES floats.
 *
 * The level defines LANES and REGISTERS, the number of vector registers, before including this.
 * Compilers split vectors that are wider than a register in memory, and a narrower vector leaves a
 * part of the register unused.
 */

#ifndef VECTORS_H
#define VECTORS_H

#include "packed.h"

#if ARM64
#include <arm_neon.h>
#endif

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t half_vector __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef int8_t int8_vector __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef uint32_t bits_vector __attribute__((vector_size(4 * LANES)));
typedef int32_t integer_vector __attribute__((vector_size(4 * LANES)));
typedef uint8_t byte_vector __attribute__((vector_size(4 * LANES), aligned(1), may_alias));

/* Vectors of one number for each row of a panel. */
enum { PANEL_VECTORS = PANEL / LANES };

/* Load LANES numbers in bfloat16. Compilers turn a loop that widens integers into one instruction
 * of x86, but for the narrowest registers a vector type is faster. For ARM, GCC 12 would load the
 * numbers one by one in both forms. */
INLINE vector load_bf16(const uint16_t *from)
{
#if ARM64
    return (vector)vshll_n_u16((uint16x4_t)*(const half_vector *)from, 16);
#else
    uint32_t loaded[LANES];
    bits_vector numbers;
    for (int i = 0; i < LANES; i++)
        loaded[i] = from[i];
    memcpy(&numbers, loaded, sizeof numbers);
    if (LANES == 4)
        numbers = __builtin_convertvector(*(const half_vector *)from, bits_vector);
    return (vector)(numbers << 16);
#endif
}

/* Load LANES numbers of 8 bits. GCC turns a loop that widens to integers into one instruction of
 * x86, but a vector type or a loop to floats into many; for ARM, it would load byte by byte. Clang
 * does not always recognize the loop. */
INLINE vector load_int8(const int8_t *from)
{
    integer_vector numbers;
#if defined(__clang__)
    numbers = __builtin_convertvector(*(const int8_vector *)from, integer_vector);
#elif ARM64
    int32_t four;
    memcpy(&four, from, sizeof four);
    const int16x8_t wider = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
    numbers = (integer_vector)vmovl_s16(vget_low_s16(wider));
#else
    int32_t loaded[LANES];
    for (int i = 0; i < LANES; i++)
        loaded[i] = from[i];
    memcpy(&numbers, loaded, sizeof numbers);
#endif
    return __builtin_convertvector(numbers, vector);
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
