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

/* Panels that are multiplied together once they are unpacked; 2 on some levels. */
#ifndef PANELS_AT_ONCE
#define PANELS_AT_ONCE 1
#endif

/* Vectors of one number for each row of a panel, and of those that are multiplied together. */
enum { PANEL_VECTORS = PANEL / LANES, MAX_VECTORS = PANELS_AT_ONCE * PANEL_VECTORS };

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

/* Sum all lanes of each of LANES vectors: lane i of the result is the sum of v[i].
 *
 * On x86, each step adds halves of what is left of two vectors: those that are in place, and the
 * others, which a shuffle brings there. */
INLINE vector lane_sums(const vector *v)
{
#if X86 && LANES == 16
    __m512 halves[8], quarters[4], eighths[2];
    for (int i = 0; i < 8; i++) {
        const __m512 a = (__m512)v[i], b = (__m512)v[i + 8];
        halves[i] = _mm512_mask_blend_ps(0xff00, a, b) +
                    _mm512_shuffle_f32x4(a, b, _MM_SHUFFLE(1, 0, 3, 2));
    }
    for (int i = 0; i < 4; i++)
        quarters[i] =
            _mm512_shuffle_f32x4(halves[i], halves[i + 4], _MM_SHUFFLE(2, 0, 2, 0)) +
            _mm512_shuffle_f32x4(halves[i], halves[i + 4], _MM_SHUFFLE(3, 1, 3, 1));
    for (int i = 0; i < 2; i++) {
        const __m512d a = (__m512d)quarters[i], b = (__m512d)quarters[i + 2];
        eighths[i] = (__m512)_mm512_mask_blend_pd(0xaa, a, b) +
                     (__m512)_mm512_shuffle_pd(a, b, 0x55);
    }
    const __m512 sums = _mm512_shuffle_ps(eighths[0], eighths[1], _MM_SHUFFLE(2, 0, 2, 0)) +
                        _mm512_shuffle_ps(eighths[0], eighths[1], _MM_SHUFFLE(3, 1, 3, 1));
    /* They are those of v[0, 2, 1, 3, 8, 10, 9, 11, 4, ...]. */
    const __m512 fours = _mm512_permute_ps(sums, _MM_SHUFFLE(3, 1, 2, 0));
    return (vector)_mm512_shuffle_f32x4(fours, fours, _MM_SHUFFLE(3, 1, 2, 0));
#elif X86 && LANES == 8
    __m256 halves[4], quarters[2];
    for (int i = 0; i < 4; i++) {
        const __m256 a = (__m256)v[i], b = (__m256)v[i + 4];
        halves[i] = _mm256_blend_ps(a, b, 0xf0) + _mm256_permute2f128_ps(a, b, 0x21);
    }
    for (int i = 0; i < 2; i++) {
        const __m256d a = (__m256d)halves[i], b = (__m256d)halves[i + 2];
        quarters[i] = (__m256)_mm256_blend_pd(a, b, 0xa) + (__m256)_mm256_shuffle_pd(a, b, 0x5);
    }
    const __m256 sums = _mm256_shuffle_ps(quarters[0], quarters[1], _MM_SHUFFLE(2, 0, 2, 0)) +
                        _mm256_shuffle_ps(quarters[0], quarters[1], _MM_SHUFFLE(3, 1, 3, 1));
    /* They are those of v[0, 2, 1, 3, 4, 6, 5, 7]. */
    return (vector)_mm256_permute_ps(sums, _MM_SHUFFLE(3, 1, 2, 0));
#elif ARM64
    const float32x4_t a = vpaddq_f32((float32x4_t)v[0], (float32x4_t)v[1]);
    const float32x4_t b = vpaddq_f32((float32x4_t)v[2], (float32x4_t)v[3]);
    return (vector)vpaddq_f32(a, b);
#else
    vector sums;
    for (int i = 0; i < LANES; i++)
        sums[i] = horizontal_sum(v[i]);
    return sums;
#endif
}

#endif
