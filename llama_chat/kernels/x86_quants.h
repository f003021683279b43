/* Quants of packed weights in vectors of x86-64, which has no shifts of bytes: masks remove bits of
 * the neighbours. */

#ifndef X86_QUANTS_H
#define X86_QUANTS_H

#include "vectors.h"

typedef uint16_t word_vector __attribute__((vector_size(4 * LANES), may_alias));

INLINE void split_nibbles(byte_vector v, byte_vector above, int shift, int mask, byte_vector *low,
                          byte_vector *high)
{
    *low = v & 15;
    *high = (byte_vector)((word_vector)v >> 4) & 15;
    if (mask) {
        const word_vector upper = (word_vector)above >> shift;
        *low |= (byte_vector)(upper << 4) & (uint8_t)(mask << 4);
        *high |= (byte_vector)upper & (uint8_t)(mask << 4);
    }
}

INLINE byte_vector look_up(byte_vector v)
{
    const __m128i table = _mm_load_si128((const __m128i *)IQ4_TABLE);
#if LANES == 16
    return (byte_vector)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), (__m512i)v);
#else
    return (byte_vector)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), (__m256i)v);
#endif
}

INLINE vector multiply_add(vector a, vector b, vector c)
{
#if LANES == 16
    return (vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
    return (vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#endif
}

/* Broadcast the four quants of a row. */
INLINE integer_vector broadcast_quants(const int8_t *x)
{
    return (integer_vector){0} + load_four_quants(x);
}

#endif
