/* Vectors of four floats in NEON, for all levels of AArch64. */

#ifndef NEON_H
#define NEON_H

#include <arm_neon.h>

#include "activation_tile.h"
#include "vectors.h"

/* Eight vectors of sums, as many of totals, and the operands fit in 32 registers. */
#define VECTORS_AT_ONCE(n) ((n) <= 2 ? 4 : 8 / (n))

#define FOR_TILE_SIZES(DO, ...)                                                                    \
    DO(1, __VA_ARGS__) DO(2, __VA_ARGS__) DO(4, __VA_ARGS__) DO(8, __VA_ARGS__)

/* Load four numbers. For GCC 12, vcvt_f32_f16() depends on all memory, as its rounding mode might,
 * and so keeps arrays of sums out of registers. */
INLINE vector load_f16(const uint16_t *from)
{
    vector numbers;
    __asm__("fcvtl %0.4s, %1.4h" : "=w"(numbers) : "w"(*(const half_vector *)from));
    return numbers;
}

/* A shift that inserts keeps the other bits of its first operand, and so replaces a mask. */
INLINE void split_nibbles(byte_vector v, byte_vector above, int shift, int mask, byte_vector *low,
                          byte_vector *high)
{
    if (mask) {
        const byte_vector upper = above >> (uint8_t)shift;
        *low = (byte_vector)vsliq_n_u8((uint8x16_t)v, (uint8x16_t)(upper & (uint8_t)mask), 4);
        *high = (byte_vector)vsriq_n_u8((uint8x16_t)(upper & (uint8_t)(mask << 4)),
                                         (uint8x16_t)v, 4);
    } else {
        *low = v & 15;
        *high = v >> 4;
    }
}

INLINE byte_vector look_up(byte_vector v)
{
    return (byte_vector)vqtbl1q_u8(vld1q_u8(IQ4_TABLE), (uint8x16_t)v);
}

INLINE vector multiply_add(vector a, vector b, vector c)
{
    return (vector)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}

/* Broadcast four quants of a row of activations. */
INLINE int8x16_t broadcast_four(const int8_t *x)
{
    return vreinterpretq_s8_s32(vdupq_n_s32(load_four_quants(x)));
}

/* Load the eight quants of two rows of activations, or of one row twice. */
INLINE int8x16_t load_two_rows(const int8_t *x, int n)
{
    int64_t eight;
    if (n > 1)
        return vld1q_s8(x);
    memcpy(&eight, x, sizeof eight);
    return vreinterpretq_s8_s64(vdupq_n_s64(eight));
}

#endif
