/* Rounding rows of activations to 8 bits. */

#include <math.h>

#include "tiles.h"

#if X86
#include <immintrin.h>
#endif

int tile_size(int n_left, int level) { return SIZES[index_of_size(n_left, level)]; }

int largest_tile(int level) { return SIZES[N_SIZES[level] - 1]; }

int64_t rounded_bytes(int64_t n_columns, int group)
{
    return n_columns / group * group_bytes(group);
}

/* What a group is divided by, and 1 over it; no number if one of its values is none. */
typedef struct {
    float step, inverse;
} rounding;

INLINE rounding rounding_of(const float *values, int group)
{
    float largest = 0, nothing = 0;
#pragma omp simd reduction(max : largest) reduction(+ : nothing)
    for (int i = 0; i < group; i++) {
        float magnitude = fabsf(values[i]);
        largest = magnitude > largest ? magnitude : largest;
        nothing += values[i] * 0; /* which is no number if the value is none, or infinite */
    }
    return (rounding){largest / 127 + nothing, largest > 0 ? 127 / largest : 0};
}

/* One row into its place among the `n` of a tile. */
INLINE void round_row(const void *x, int narrow, int64_t n_columns, int group, int n, int m,
                      uint8_t *tile)
{
    for (int64_t g = 0; g < n_columns / group; g++) {
        float values[MAX_GROUP];
        int8_t quants[MAX_GROUP];
        for (int i = 0; i < group; i++)
            values[i] = narrow ? bfloat16_to_float(((const uint16_t *)x)[g * group + i])
                               : ((const float *)x)[g * group + i];
        const rounding by = rounding_of(values, group);
        int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int i = 0; i < group; i++) {
            int32_t rounded = rounded_part(values[i] * by.inverse + ROUNDING);
            quants[i] = (int8_t)rounded;
            sum += rounded;
        }
        uint8_t *to = tile + g * n * group_bytes(group);
        for (int c = 0; c < group / 4; c++)
            memcpy(to + 4 * (c * n + m), quants + 4 * c, 4);
        float *floats = (float *)(to + n * group);
        floats[m] = by.step;
        floats[n + m] = by.step * (float)sum;
        ((int32_t *)floats)[2 * n + m] = -8 * sum;
    }
}

INLINE void remainder_of(const float *x, int64_t n_columns, int group, float *to)
{
    for (int64_t g = 0; g < n_columns; g += group) {
        const rounding by = rounding_of(x + g, group);
        for (int i = 0; i < group; i++)
            to[g + i] = x[g + i] - by.step * (x[g + i] * by.inverse + ROUNDING - ROUNDING);
    }
}

#define ROUND(target, level, ...)                                                                  \
    target static void round_##level(const void *x, int narrow, int64_t n_columns, int group,      \
                                     int n, int m, uint8_t *tile)                                  \
    {                                                                                              \
        if (narrow)                                                                                \
            group == 16 ? round_row(x, 1, n_columns, 16, n, m, tile)                               \
                        : round_row(x, 1, n_columns, 32, n, m, tile);                              \
        else                                                                                       \
            group == 16 ? round_row(x, 0, n_columns, 16, n, m, tile)                               \
                        : round_row(x, 0, n_columns, 32, n, m, tile);                              \
    }                                                                                              \
    target static void remainder_##level(const float *x, int64_t n_columns, int group, float *to)  \
    {                                                                                              \
        group == 16 ? remainder_of(x, n_columns, 16, to) : remainder_of(x, n_columns, 32, to);     \
    }

FOR_LEVELS(ROUND)
static void (*const REMAINDERS[])(const float *, int64_t, int, float *) = BY_LEVEL(remainder);
static void (*const ROUNDERS[])(const void *, int, int64_t, int, int, int, uint8_t *) =
    BY_LEVEL(round);

#if X86
TARGET_AVX512 INLINE __m512i rounded_parts(__m512 shifted)
{
    return _mm512_sub_epi32(_mm512_castps_si512(shifted), _mm512_set1_epi32(ROUNDING_BITS));
}

/* The same for float32 in groups of 32, where compilers take four times as long. */
TARGET_AVX512 static void round_float_row(const float *x, int64_t n_columns, int n, int m,
                                          uint8_t *tile)
{
    const __m512 infinite = _mm512_set1_ps(INFINITY), shift = _mm512_set1_ps(ROUNDING);
    uint8_t *to = tile + 4 * m;
    for (int64_t g = 0; g < n_columns; g += 32, to += n * group_bytes(32)) {
        __m512 low = _mm512_loadu_ps(x + g), high = _mm512_loadu_ps(x + g + 16);
        __m512 low_size = _mm512_abs_ps(low), high_size = _mm512_abs_ps(high);
        __mmask16 odd = _mm512_cmp_ps_mask(low_size, infinite, _CMP_NLT_UQ) |
                        _mm512_cmp_ps_mask(high_size, infinite, _CMP_NLT_UQ);
        float largest = _mm512_reduce_max_ps(_mm512_max_ps(low_size, high_size));
        float step = odd ? NAN : largest / 127;
        __m512 inverse = _mm512_set1_ps(largest > 0 ? 127 / largest : 0);
        __m512i first = rounded_parts(_mm512_fmadd_ps(low, inverse, shift));
        __m512i second = rounded_parts(_mm512_fmadd_ps(high, inverse, shift));
        int32_t sum = _mm512_reduce_add_epi32(_mm512_add_epi32(first, second));
        int32_t quants[8];
        _mm_storeu_si128((__m128i *)quants, _mm512_cvtepi32_epi8(first));
        _mm_storeu_si128((__m128i *)(quants + 4), _mm512_cvtepi32_epi8(second));
        for (int c = 0; c < 8; c++)
            memcpy(to + 4 * c * n, quants + c, 4);
        float *floats = (float *)(to + n * 32);
        floats[0] = step;
        floats[n] = step * (float)sum;
        ((int32_t *)floats)[2 * n] = -8 * sum;
    }
}
#endif

void round_tile(const void *x, int narrow, int64_t n_columns, int group, int n, uint8_t *tile,
                int level)
{
    const int64_t row_bytes = n_columns * (narrow ? 2 : 4);
    for (int m = 0; m < n; m++) {
        const char *row = (const char *)x + m * row_bytes;
#if X86
        if (level == AVX512_VNNI && !narrow && group == 32) {
            round_float_row((const float *)row, n_columns, n, m, tile);
            continue;
        }
#endif
        ROUNDERS[level](row, narrow, n_columns, group, n, m, tile);
    }
}

void take_remainder(const float *x, int64_t n_columns, int group, float *to, int level)
{
    REMAINDERS[level](x, n_columns, group, to);
}
