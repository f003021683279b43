/* Float16, bfloat16, rounding and exp, without branches where compilers should vectorize. */

#ifndef NUMBERS_H
#define NUMBERS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "compiler.h"

/* ---- float16 and bfloat16 ------------------------------------------------------------------- */

/* Shift the exponent and the fraction into place, then set the bias by a multiplication: that is
 * exact for subnormal numbers too (F. Giesen, https://gist.github.com/rygorous/2144712). */
INLINE float half_to_float(uint16_t half)
{
    uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
    float value;
    memcpy(&value, &bits, 4);
    value *= 0x1p112f;
    if ((half & 0x7c00) == 0x7c00) { /* infinity or NaN */
        bits |= 0x7f800000;
        memcpy(&value, &bits, 4);
    }
    return half & 0x8000 ? -value : value;
}

INLINE float load_half(const uint8_t *from)
{
    uint16_t half;
    memcpy(&half, from, 2);
    return half_to_float(half);
}

/* Round to nearest, ties to even; numbers out of range become the largest, and NaN stays NaN.
 *
 * Adding a power of two whose last place is that of the result rounds the fraction away. */
INLINE uint16_t to_half(float value)
{
    float size = fabsf(value);
    size = size > 65504.0f ? 65504.0f : size; /* false for NaN */
    uint32_t bits;
    memcpy(&bits, &size, 4);
    uint32_t exponent = bits & 0x7f800000;
    exponent = exponent < 0x38800000 ? 0x38800000 : exponent; /* below: subnormal numbers */
    float magic, sum;
    const uint32_t magic_bits = exponent + (13u << 23);
    memcpy(&magic, &magic_bits, 4);
    sum = size + magic;
    uint32_t rounded;
    memcpy(&rounded, &sum, 4);
    uint32_t half = (exponent - 0x38800000) >> 13;
    half += rounded - magic_bits;
    half = value != value ? 0x7e00 : half;
    return (uint16_t)(half | (value < 0 ? 0x8000 : 0));
}

/* Round to nearest, ties to even; for finite numbers. */
INLINE uint16_t finite_to_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

INLINE uint16_t to_bf16(float value)
{
    return value == value ? finite_to_bf16(value) : 0x7fc0;
}

INLINE float bf16_to_float(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* ---- rounding ------------------------------------------------------------------------------- */

/* 1.5 * 2**23: a float of this size has no bits for a fraction, so adding it rounds, ties to
 * even. */
#define ROUNDING 0x1.8p23f
#define ROUNDING_BITS 0x4b400000

/* Extract the integer from a float to which ROUNDING was added. */
INLINE int32_t rounded_integer(float shifted)
{
    uint32_t bits;
    memcpy(&bits, &shifted, 4);
    return (int32_t)(bits - ROUNDING_BITS); /* wraps around for what is no number */
}

/* The factor that quantizes numbers of at most `max` to 8 bits; 0 for those so small that it would be
 * infinite. */
INLINE float quantizing_factor(float max) { return max > 0x1p-120f ? 127 / max : 0; }

INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

INLINE int64_t round_up(int64_t n, int64_t multiple)
{
    return (n + multiple - 1) / multiple * multiple;
}

/* ---- exp ------------------------------------------------------------------------------------ */

/* Least exponent: fast_exp() is 0 below it, and constant above its negative. Smaller values do not
 * matter beside 1, in a softmax or in SwiGLU. Products and quotients of numbers so far from 1 would
 * be subnormal, which takes x86 a hundred cycles each, even in unused lanes, since compilers
 * compute both sides of a condition. */
#define LEAST_EXPONENT -60.0f

/* Compute exp(x) with a relative error of about 1e-7: 2**n times the Taylor series of the
 * remainder x - n * ln 2, with ln 2 in two parts (Cody and Waite 1980, Software Manual for the
 * Elementary Functions). */
INLINE float fast_exp(float x)
{
    const float is_seen = x < LEAST_EXPONENT ? 0.0f : 1.0f; /* 1 for NaN */
    x = x < LEAST_EXPONENT ? LEAST_EXPONENT : x;
    x = x > -LEAST_EXPONENT ? -LEAST_EXPONENT : x;
    float shifted = x * 1.44269504f + ROUNDING, whole = shifted - ROUNDING;
    float f = x - whole * 0.693145752f - whole * 1.42860677e-6f;
    float p = 1 + f * (1 + f * (0.5f + f * (0.166666667f + f * (0.0416666667f +
              f * (0.00833333333f + f * 0.00138888889f)))));
    const uint32_t bits = ((uint32_t)rounded_integer(shifted) + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return p * power * is_seen;
}

#endif
