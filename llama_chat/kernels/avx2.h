/* Vectors of eight floats, for the levels of x86-64 that have AVX2. Included after BEGIN_TARGET. */

#ifndef AVX2_H
#define AVX2_H

#include "x86_quants.h"

/* Larger tiles would not fit in 16 registers. */
#define FOR_TILE_SIZES(DO, ...) DO(1, __VA_ARGS__) DO(2, __VA_ARGS__) DO(4, __VA_ARGS__)

INLINE vector load_f16(const uint16_t *from)
{
    return (vector)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
}

#endif
