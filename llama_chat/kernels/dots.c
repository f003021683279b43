/* Products of a panel with a tile: what all the time goes into.
 *
 * Activations are rounded to 8 bits per group, with a float scale, so that for a group
 *
 *     sum(w * x)  ~  scale * x_scale * sum(q * x_q)  +  min * x_scale * sum(x_q)
 *
 * where both sums are of integers. The second is that of the rounded activations: their errors are
 * then weighed by the weights, which lie around zero, and not by the quants, which need not.
 *
 * The same source serves every machine: a function for each instruction set, chosen at run time.
 */

#include "tiles.h"

#if X86
#include <immintrin.h>
#endif

/* Four neighbouring quants of activations, as a number to be spread over a vector. */
INLINE int32_t four(const int8_t *x)
{
    int32_t number;
    memcpy(&number, x, 4);
    return number;
}

/* What an integer sum begins with: what is added to each q in store, W8 q + 128, is taken away, and
 * quants with minima are as they are. `begin` is that of W4. */
INLINE int32_t begin_of(int32_t begin, int bits, int has_mins)
{
    return has_mins ? 0 : bits == 8 ? 16 * begin : bits == 6 ? 4 * begin : begin;
}

/* Where the upper two bits of the columns of chunk `c` of W6 lie: in which chunk, and how high
 * those of its low halves; those of the others are four bits above. */
INLINE int upper_chunk(int c, int group) { return group / 8 + c % (group / 16); }
INLINE int upper_shift(int c, int group) { return c / (group / 16) * 2; }

/* ---- portable ------------------------------------------------------------------------------ */

INLINE void halves_portable(const uint8_t *from, float *to)
{
    for (int r = 0; r < PANEL; r++)
        to[r] = half_at(from + 2 * r);
}

INLINE void stepped_portable(const uint8_t *from, const float *steps, float *to)
{
    for (int r = 0; r < PANEL; r++)
        to[r] = steps[r] * (float)((const int8_t *)from)[r];
}

INLINE void dot_portable(const uint8_t *block, int64_t groups, const uint8_t *tile, float *out,
                         int64_t out_row, int bits, int group, int has_mins, int span, int n)
{
    const int chunks = low_chunks(bits, group);
    float totals[MAX_TILE][PANEL] = {{0}}, steps[PANEL] = {0}, min_steps[PANEL] = {0};
    for (int64_t g = 0; g < groups; g++, block += block_bytes(bits, group, has_mins, span)) {
        tile_group x = group_of(tile, g, group, n);
        float scales[PANEL], mins[PANEL];
        if (step_bytes(g, has_mins, span)) {
            halves_portable(block, steps);
            if (has_mins)
                halves_portable(block + 2 * PANEL, min_steps);
            block += step_bytes(g, has_mins, span);
        }
        const uint8_t *numbers = block + quant_bytes(bits, group);
        span ? stepped_portable(numbers, steps, scales) : halves_portable(numbers, scales);
        if (has_mins)
            span ? stepped_portable(numbers + PANEL, min_steps, mins)
                 : halves_portable(numbers + 2 * PANEL, mins);
        for (int m = 0; m < n; m++) {
            int32_t dots[PANEL];
            for (int r = 0; r < PANEL; r++)
                dots[r] = begin_of(x.begin[m], bits, has_mins);
            for (int c = 0; c < chunks; c++) {
                const uint8_t *q = block + c * CHUNK;
                const uint8_t *upper = block + upper_chunk(c, group) * CHUNK;
                const int shift = upper_shift(c, group);
                const int8_t *low = x.quants + 4 * (c * n + m);
                const int8_t *high = low + 4 * chunks * n;
                for (int r = 0; r < PANEL; r++)
                    for (int j = 0; j < 4; j++) {
                        const int i = 4 * r + j, bits_above = bits == 6 ? upper[i] >> shift : 0;
                        const int first = (q[i] & 15) + ((bits_above & 3) << 4);
                        const int second = (q[i] >> 4) + (bits_above & 0x30);
                        dots[r] += bits == 8 ? q[i] * low[j] : first * low[j] + second * high[j];
                    }
            }
            for (int r = 0; r < PANEL; r++)
                totals[m][r] +=
                    scales[r] * x.scales[m] * (float)dots[r] + (has_mins ? mins[r] * x.sums[m] : 0);
        }
    }
    for (int m = 0; m < n; m++)
        memcpy(out + m * out_row, totals[m], sizeof totals[m]);
}

#if X86
/* ---- AVX2 ---------------------------------------------------------------------------------- */

#define INLINE_AVX2 TARGET_AVX2 INLINE

/* Sums of four neighbouring products, each of at most 128 * 127. */
INLINE_AVX2 __m256i products_avx2(__m256i unsigned_a, __m256i signed_b)
{
    return _mm256_madd_epi16(_mm256_maddubs_epi16(unsigned_a, signed_b), _mm256_set1_epi16(1));
}

INLINE_AVX2 __m256 halves_avx2(const uint8_t *from)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
}

/* Scales or minima of eight rows. */
INLINE_AVX2 __m256 numbers_avx2(const uint8_t *from, int side, __m256 steps, int span)
{
    if (!span)
        return halves_avx2(from + 16 * side);
    __m256i whole = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(from + 8 * side)));
    return _mm256_mul_ps(steps, _mm256_cvtepi32_ps(whole));
}

INLINE_AVX2 void dot_avx2(const uint8_t *panel, int64_t groups, const uint8_t *tile, float *out,
                          int64_t out_row, int bits, int group, int has_mins, int span, int n)
{
    const int chunks = low_chunks(bits, group);
    const __m256i low_half = _mm256_set1_epi8(15), flip = _mm256_set1_epi8((char)0x80);
    const __m256i two_bits = _mm256_set1_epi8(0x30);
    for (int side = 0; side < 2; side++) { /* eight rows at a time */
        const uint8_t *block = panel;
        __m256 totals[MAX_TILE], steps = _mm256_setzero_ps(), min_steps = steps;
        for (int m = 0; m < n; m++)
            totals[m] = _mm256_setzero_ps();
        for (int64_t g = 0; g < groups; g++, block += block_bytes(bits, group, has_mins, span)) {
            tile_group x = group_of(tile, g, group, n);
            __m256i dots[MAX_TILE];
            if (step_bytes(g, has_mins, span)) {
                steps = halves_avx2(block + 16 * side);
                if (has_mins)
                    min_steps = halves_avx2(block + 2 * PANEL + 16 * side);
                block += step_bytes(g, has_mins, span);
            }
            for (int m = 0; m < n; m++) /* bytes of W8 are made signed again */
                dots[m] = _mm256_set1_epi32(bits == 8 ? 0 : begin_of(x.begin[m], bits, has_mins));
            for (int c = 0; c < chunks; c++) {
                const uint8_t *at = block + 32 * side;
                __m256i v = _mm256_loadu_si256((const __m256i *)(at + c * CHUNK));
                __m256i low = _mm256_and_si256(v, low_half);
                __m256i high = _mm256_and_si256(_mm256_srli_epi16(v, 4), low_half);
                __m256i sign = _mm256_xor_si256(v, flip), magnitude = _mm256_abs_epi8(sign);
                if (bits == 6) {
                    const void *above = at + upper_chunk(c, group) * CHUNK;
                    __m256i upper = _mm256_loadu_si256((const __m256i *)above);
                    upper = _mm256_srli_epi16(upper, upper_shift(c, group));
                    low = _mm256_or_si256(
                        low, _mm256_and_si256(_mm256_slli_epi16(upper, 4), two_bits));
                    high = _mm256_or_si256(high, _mm256_and_si256(upper, two_bits));
                }
                for (int m = 0; m < n; m++) {
                    const int8_t *from = x.quants + 4 * (c * n + m);
                    __m256i first = _mm256_set1_epi32(four(from)), dot;
                    if (bits == 8)
                        dot = products_avx2(magnitude, _mm256_sign_epi8(first, sign));
                    else
                        dot = _mm256_add_epi32(
                            products_avx2(low, first),
                            products_avx2(high, _mm256_set1_epi32(four(from + 4 * chunks * n))));
                    dots[m] = _mm256_add_epi32(dots[m], dot);
                }
            }
            const uint8_t *numbers = block + quant_bytes(bits, group);
            __m256 scale = numbers_avx2(numbers, side, steps, span);
            for (int m = 0; m < n; m++)
                totals[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[m]),
                                            _mm256_mul_ps(scale, _mm256_set1_ps(x.scales[m])),
                                            totals[m]);
            if (!has_mins)
                continue;
            __m256 min = numbers_avx2(numbers + number_bytes(0, span), side, min_steps, span);
            for (int m = 0; m < n; m++)
                totals[m] = _mm256_fmadd_ps(min, _mm256_set1_ps(x.sums[m]), totals[m]);
        }
        for (int m = 0; m < n; m++)
            _mm256_storeu_ps(out + m * out_row + 8 * side, totals[m]);
    }
}

/* ---- AVX-512 with VNNI --------------------------------------------------------------------- */

#define INLINE_AVX512 TARGET_AVX512 INLINE

INLINE_AVX512 __m512 halves_avx512(const uint8_t *from)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
}

/* The scales or minima of a block. */
INLINE_AVX512 __m512 numbers_avx512(const uint8_t *from, __m512 steps, int span)
{
    if (!span)
        return halves_avx512(from);
    __m512i whole = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from));
    return _mm512_mul_ps(steps, _mm512_cvtepi32_ps(whole));
}

INLINE_AVX512 void dot_avx512(const uint8_t *block, int64_t groups, const uint8_t *tile, float *out,
                              int64_t out_row, int bits, int group, int has_mins, int span, int n)
{
    const int chunks = low_chunks(bits, group);
    const __m512i low_half = _mm512_set1_epi8(15), two_bits = _mm512_set1_epi8(0x30);
    __m512 totals[MAX_TILE], steps = _mm512_setzero_ps(), min_steps = steps;
    for (int m = 0; m < n; m++)
        totals[m] = _mm512_setzero_ps();
    for (int64_t g = 0; g < groups; g++, block += block_bytes(bits, group, has_mins, span)) {
        tile_group x = group_of(tile, g, group, n);
        __m512i dots[MAX_TILE];
        if (step_bytes(g, has_mins, span)) {
            steps = halves_avx512(block);
            if (has_mins)
                min_steps = halves_avx512(block + 2 * PANEL);
            block += step_bytes(g, has_mins, span);
        }
        for (int m = 0; m < n; m++)
            dots[m] = _mm512_set1_epi32(begin_of(x.begin[m], bits, has_mins));
        for (int c = 0; c < chunks; c++) {
            __m512i v = _mm512_loadu_si512(block + c * CHUNK);
            __m512i low = _mm512_and_si512(v, low_half);
            __m512i high = _mm512_and_si512(_mm512_srli_epi16(v, 4), low_half);
            if (bits == 6) {
                __m512i upper = _mm512_loadu_si512(block + upper_chunk(c, group) * CHUNK);
                upper = _mm512_srli_epi16(upper, upper_shift(c, group));
                low = _mm512_or_si512(low, _mm512_and_si512(_mm512_slli_epi16(upper, 4), two_bits));
                high = _mm512_or_si512(high, _mm512_and_si512(upper, two_bits));
            }
            for (int m = 0; m < n; m++) {
                const int8_t *at = x.quants + 4 * (c * n + m);
                dots[m] = _mm512_dpbusd_epi32(dots[m], bits == 8 ? v : low,
                                              _mm512_set1_epi32(four(at)));
            }
            if (bits != 8)
                for (int m = 0; m < n; m++) {
                    const int8_t *at = x.quants + 4 * ((chunks + c) * n + m);
                    dots[m] = _mm512_dpbusd_epi32(dots[m], high, _mm512_set1_epi32(four(at)));
                }
        }
        const uint8_t *numbers = block + quant_bytes(bits, group);
        __m512 scale = numbers_avx512(numbers, steps, span);
        for (int m = 0; m < n; m++)
            totals[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[m]),
                                        _mm512_mul_ps(scale, _mm512_set1_ps(x.scales[m])),
                                        totals[m]);
        if (!has_mins)
            continue;
        __m512 min = numbers_avx512(numbers + number_bytes(0, span), min_steps, span);
        for (int m = 0; m < n; m++)
            totals[m] = _mm512_fmadd_ps(min, _mm512_set1_ps(x.sums[m]), totals[m]);
    }
    for (int m = 0; m < n; m++)
        _mm512_storeu_ps(out + m * out_row, totals[m]);
}
#endif

/* ---- every layout and every size of a tile ------------------------------------------------- */

/* Every constant is known to the compiler. */
#define DOT(bits, group, has_mins, span, target, level, n)                                         \
    target static void level##_w##bits##_##group##_##has_mins##_##span##_##n(                      \
        const uint8_t *panel, int64_t groups, const uint8_t *tile, float *out, int64_t out_row)    \
    {                                                                                              \
        dot_##level(panel, groups, tile, out, out_row, bits, group, has_mins, span, n);            \
    }
#define NAME(bits, group, has_mins, span, level, n)                                                \
    level##_w##bits##_##group##_##has_mins##_##span##_##n

#define SMALL_DOTS(bits, group, has_mins, span, target, level)                                     \
    DOT(bits, group, has_mins, span, target, level, 1)                                             \
    DOT(bits, group, has_mins, span, target, level, 2)                                             \
    DOT(bits, group, has_mins, span, target, level, 4)
#define SMALL_NAMES(bits, group, has_mins, span, level)                                            \
    {NAME(bits, group, has_mins, span, level, 1), NAME(bits, group, has_mins, span, level, 2),     \
     NAME(bits, group, has_mins, span, level, 4)},

#define ALL_DOTS(bits, group, has_mins, span, target, level)                                       \
    SMALL_DOTS(bits, group, has_mins, span, target, level)                                         \
    DOT(bits, group, has_mins, span, target, level, 8)                                             \
    DOT(bits, group, has_mins, span, target, level, 12)
#define ALL_NAMES(bits, group, has_mins, span, level)                                              \
    {NAME(bits, group, has_mins, span, level, 1), NAME(bits, group, has_mins, span, level, 2),     \
     NAME(bits, group, has_mins, span, level, 4), NAME(bits, group, has_mins, span, level, 8),     \
     NAME(bits, group, has_mins, span, level, 12)},

FOR_LAYOUTS(SMALL_DOTS, , portable)
#if X86
FOR_LAYOUTS(SMALL_DOTS, TARGET_AVX2, avx2)
FOR_LAYOUTS(ALL_DOTS, TARGET_AVX512, avx512)
#endif

#define ONE_MORE(...) +1
enum { N_LAYOUTS = 0 FOR_LAYOUTS(ONE_MORE, ) };

/* By instruction set, layout and SIZES. */
static dot_function *const DOTS[][N_LAYOUTS][5] = {
    {FOR_LAYOUTS(SMALL_NAMES, portable)},
#if X86
    {FOR_LAYOUTS(SMALL_NAMES, avx2)},
    {FOR_LAYOUTS(ALL_NAMES, avx512)},
#endif
};

dot_function *const *dots_of(const packed_matrix *w, int level)
{
    int layout = 0;
#define FIND(bits, group, has_mins, span, ...)                                                     \
    if (is_layout(w, bits, group, has_mins, span))                                                 \
        return DOTS[level][layout];                                                                \
    layout++;
    FOR_LAYOUTS(FIND, )
    return NULL;
}
