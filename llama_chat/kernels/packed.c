/* Products of packed weights with a few rows of activations.
 *
 * A weight is scale * q + min, with a scale and a minimum for each group of neighbours (see
 * model/quantization.py). Activations are rounded to 8 bits per group, with a float scale, so that
 * for a group
 *
 *     sum(w * x)  ~  scale * x_scale * sum(q * x_q)  +  min * x_scale * sum(x_q)
 *
 * where both sums are of integers. The second is that of the rounded activations: their errors are
 * then weighed by the weights, which lie around zero, and not by the quants, which need not. Sixteen groups make a block: their scales are one
 * vector. The quants of a block are `lanes` chunks of 64 bytes, in which each group takes `lanes`
 * lanes of 32 bits. Activations are laid out chunk by chunk in the order in which quants lie in
 * memory: for W4 the 64 partners of the low halves, then those of the high ones.
 *
 * The same source serves every machine: a function for each instruction set, chosen at run time.
 */

#include <math.h>
#include <string.h>

#include "packed.h"

#if X86
#include <immintrin.h>
#endif

enum { BLOCK_GROUPS = 16, CHUNK = 64 };

INLINE int64_t n_blocks(const packed_matrix *w)
{
    return (n_groups(w) + BLOCK_GROUPS - 1) / BLOCK_GROUPS;
}

/* Lanes of 32 bits that the quants of a group take. */
INLINE int n_lanes(int bits, int group) { return group * bits / 32; }

/* Bytes of the quants of a block. */
INLINE int block_bytes(int bits, int group) { return BLOCK_GROUPS * group * bits / 8; }

/* Where the activation of weight `i` of group `g` of a block stands among those of the block. */
INLINE int place(int bits, int group, int g, int i)
{
    if (bits == 8)
        return g * group + i;
    int half = group / 2, byte = g * half + i % half;
    return byte / CHUNK * 2 * CHUNK + byte % CHUNK + (i < half ? 0 : CHUNK);
}

INLINE void round_row(const packed_matrix *w, const float *x, activations a, int bits, int group)
{
    for (int64_t g = 0; g < n_groups(w); g++) {
        const float *values = x + g * group;
        float largest = 0;
        for (int i = 0; i < group; i++)
            largest = fmaxf(largest, fabsf(values[i]));
        float inverse = largest > 0 ? 127 / largest : 0;
        int8_t *quants = a.quants + g / BLOCK_GROUPS * BLOCK_GROUPS * group;
        int32_t sum = 0;
        for (int i = 0; i < group; i++) {
            int8_t rounded = (int8_t)lrintf(values[i] * inverse);
            quants[place(bits, group, g % BLOCK_GROUPS, i)] = rounded;
            sum += rounded;
        }
        a.scales[g] = largest / 127;
        a.sums[g] = a.scales[g] * (float)sum;
    }
}

/* A row's last block, if it is not whole, is copied into `scratch` and padded with zeros. */
INLINE const uint8_t *whole_block(const uint8_t *quants, int n, int bits, int group,
                                  uint8_t *scratch)
{
    if (n == BLOCK_GROUPS)
        return quants;
    memset(scratch, 0, (size_t)block_bytes(bits, group));
    memcpy(scratch, quants, (size_t)n * group * bits / 8);
    return scratch;
}

/* ---- portable ------------------------------------------------------------------------------ */

INLINE void dot_portable(const packed_matrix *w, int64_t row, const activations *a, int n_x,
                         float *y, int bits, int group, int has_mins)
{
    int64_t groups = n_groups(w);
    const uint8_t *quants = w->quants + row * (w->n_columns * bits / 8);
    const uint16_t *scales = w->scales + row * groups;
    const uint16_t *mins = has_mins ? w->mins + row * groups : NULL;
    int bytes = group * bits / 8;
    float totals[MAX_ROWS] = {0};
    for (int64_t g = 0; g < groups; g++, quants += bytes) {
        float scale = half_to_float(scales[g]);
        float min = has_mins ? half_to_float(mins[g]) : bits == 4 ? -8 * scale : 0;
        int in_block = (int)(g % BLOCK_GROUPS);
        for (int m = 0; m < n_x; m++) {
            const int8_t *x = a[m].quants + g / BLOCK_GROUPS * BLOCK_GROUPS * group;
            int32_t dot = 0;
            if (bits == 8) {
                x += place(8, group, in_block, 0);
                for (int i = 0; i < bytes; i++)
                    dot += (int8_t)quants[i] * x[i];
            } else {
                x += place(4, group, in_block, 0);
                for (int i = 0; i < bytes; i++)
                    dot += (quants[i] & 15) * x[i] + (quants[i] >> 4) * x[i + CHUNK];
            }
            totals[m] += scale * a[m].scales[g] * (float)dot + min * a[m].sums[g];
        }
    }
    for (int m = 0; m < n_x; m++)
        y[m * w->n_rows + row] = totals[m];
}

#if X86
/* ---- AVX2 ---------------------------------------------------------------------------------- */

#define INLINE_AVX2 TARGET_AVX2 INLINE

INLINE_AVX2 float sum_avx2(__m256 v)
{
    __m128 low = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    low = _mm_add_ps(low, _mm_movehl_ps(low, low));
    return _mm_cvtss_f32(_mm_add_ss(low, _mm_shuffle_ps(low, low, 1)));
}

/* Sums of four neighbouring products; |a| must stay below 128 where both have all 8 bits. */
INLINE_AVX2 __m256i products_avx2(__m256i unsigned_a, __m256i signed_b)
{
    return _mm256_madd_epi16(_mm256_maddubs_epi16(unsigned_a, signed_b), _mm256_set1_epi16(1));
}

INLINE_AVX2 void dot_avx2(const packed_matrix *w, int64_t row, const activations *a, int n_x,
                          float *y, int bits, int group, int has_mins)
{
    const int lanes = n_lanes(bits, group), bytes = block_bytes(bits, group);
    const int64_t groups = n_groups(w);
    const uint8_t *quants = w->quants + row * (w->n_columns * bits / 8);
    const uint16_t *scales = w->scales + row * groups;
    const uint16_t *mins = has_mins ? w->mins + row * groups : NULL;
    const __m256i low_half = _mm256_set1_epi8(15);
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i lane_group = _mm256_srli_epi32(lane, lanes == 8 ? 3 : lanes == 4 ? 2 : 1);
    __m256 totals[MAX_ROWS];
    for (int m = 0; m < n_x; m++)
        totals[m] = _mm256_setzero_ps();
    for (int64_t g = 0; g < groups; g += BLOCK_GROUPS, quants += bytes) {
        uint8_t scratch[BLOCK_GROUPS * 32];
        uint16_t padded[2][BLOCK_GROUPS];
        int n = (int)(groups - g < BLOCK_GROUPS ? groups - g : BLOCK_GROUPS);
        const uint8_t *q = whole_block(quants, n, bits, group, scratch);
        const uint16_t *s = scales + g, *lows = has_mins ? mins + g : NULL;
        if (n < BLOCK_GROUPS) {
            memset(padded, 0, sizeof padded);
            memcpy(padded[0], s, 2 * (size_t)n);
            s = padded[0];
            if (has_mins) {
                memcpy(padded[1], lows, 2 * (size_t)n);
                lows = padded[1];
            }
        }
        for (int side = 0; side < 2; side++) { /* eight groups at a time */
            __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(s + 8 * side)));
            __m256 min = _mm256_setzero_ps();
            if (has_mins)
                min = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(lows + 8 * side)));
            else if (bits == 4)
                min = _mm256_mul_ps(scale, _mm256_set1_ps(-8));
            __m256 factors[MAX_ROWS];
            for (int m = 0; m < n_x; m++) {
                factors[m] = _mm256_mul_ps(scale, _mm256_loadu_ps(a[m].scales + g + 8 * side));
                if (has_mins || bits == 4)
                    totals[m] = _mm256_fmadd_ps(min, _mm256_loadu_ps(a[m].sums + g + 8 * side),
                                                totals[m]);
            }
            for (int j = 0; j < lanes; j++) {
                int at = (side * lanes + j) * 32;
                __m256i v = _mm256_loadu_si256((const __m256i *)(q + at));
                __m256i index = _mm256_add_epi32(lane_group, _mm256_set1_epi32(j * 8 / lanes));
                __m256i low = _mm256_and_si256(v, low_half);
                __m256i high = _mm256_and_si256(_mm256_srli_epi16(v, 4), low_half);
                __m256i magnitude = _mm256_abs_epi8(v);
                for (int m = 0; m < n_x; m++) {
                    const int8_t *x = a[m].quants + g * group;
                    __m256i dot;
                    if (bits == 4) {
                        x += at / CHUNK * 2 * CHUNK + at % CHUNK;
                        dot = _mm256_add_epi32(
                            products_avx2(low, _mm256_loadu_si256((const __m256i *)x)),
                            products_avx2(high, _mm256_loadu_si256((const __m256i *)(x + CHUNK))));
                    } else {
                        __m256i signs = _mm256_loadu_si256((const __m256i *)(x + at));
                        dot = products_avx2(magnitude, _mm256_sign_epi8(signs, v));
                    }
                    totals[m] = _mm256_fmadd_ps(
                        _mm256_cvtepi32_ps(dot), _mm256_permutevar8x32_ps(factors[m], index),
                        totals[m]);
                }
            }
        }
    }
    for (int m = 0; m < n_x; m++)
        y[m * w->n_rows + row] = sum_avx2(totals[m]);
}

/* ---- AVX-512 with VNNI --------------------------------------------------------------------- */

#define INLINE_AVX512 TARGET_AVX512 INLINE

INLINE_AVX512 void dot_avx512(const packed_matrix *w, int64_t row, const activations *a, int n_x,
                              float *y, int bits, int group, int has_mins)
{
    const int lanes = n_lanes(bits, group), bytes = block_bytes(bits, group);
    const int64_t groups = n_groups(w);
    const uint8_t *quants = w->quants + row * (w->n_columns * bits / 8);
    const uint16_t *scales = w->scales + row * groups;
    const uint16_t *mins = has_mins ? w->mins + row * groups : NULL;
    const __m512i low_half = _mm512_set1_epi8(15), flip = _mm512_set1_epi8((char)0x80);
    const __m512i zero = _mm512_setzero_si512();
    const __m512i lane =
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i lane_group = _mm512_srli_epi32(lane, lanes == 8 ? 3 : lanes == 4 ? 2 : 1);
    __m512 totals[MAX_ROWS];
    for (int m = 0; m < n_x; m++)
        totals[m] = _mm512_setzero_ps();
    for (int64_t g = 0; g < groups; g += BLOCK_GROUPS, quants += bytes) {
        uint8_t scratch[BLOCK_GROUPS * 32];
        int n = (int)(groups - g < BLOCK_GROUPS ? groups - g : BLOCK_GROUPS);
        const uint8_t *q = whole_block(quants, n, bits, group, scratch);
        __mmask16 present = (__mmask16)(0xffff >> (BLOCK_GROUPS - n));
        __m512 scale = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(present, scales + g));
        __m512 min = _mm512_setzero_ps();
        if (has_mins)
            min = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(present, mins + g));
        else if (bits == 4)
            min = _mm512_mul_ps(scale, _mm512_set1_ps(-8));
        __m512 factors[MAX_ROWS];
        for (int m = 0; m < n_x; m++) {
            factors[m] = _mm512_mul_ps(scale, _mm512_loadu_ps(a[m].scales + g));
            if (has_mins || bits == 4)
                totals[m] = _mm512_fmadd_ps(min, _mm512_loadu_ps(a[m].sums + g), totals[m]);
        }
        for (int j = 0; j < lanes; j++) {
            __m512i v = _mm512_loadu_si512(q + j * CHUNK);
            __m512i index = _mm512_add_epi32(lane_group, _mm512_set1_epi32(j * 16 / lanes));
            __m512i low = _mm512_and_si512(v, low_half);
            __m512i high = _mm512_and_si512(_mm512_srli_epi16(v, 4), low_half);
            __m512i raised = _mm512_xor_si512(v, flip); /* q + 128, unsigned */
            for (int m = 0; m < n_x; m++) {
                const int8_t *x = a[m].quants + g * group + j * CHUNK * (bits == 4 ? 2 : 1);
                __m512i dot;
                if (bits == 4) {
                    dot = _mm512_dpbusd_epi32(zero, low, _mm512_loadu_si512(x));
                    dot = _mm512_dpbusd_epi32(dot, high, _mm512_loadu_si512(x + CHUNK));
                } else {
                    __m512i signed_x = _mm512_loadu_si512(x);
                    __m512i sum128 = _mm512_dpbusd_epi32(zero, flip, signed_x);
                    dot = _mm512_sub_epi32(_mm512_dpbusd_epi32(zero, raised, signed_x), sum128);
                }
                totals[m] =
                    _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot),
                                    _mm512_permutexvar_ps(index, factors[m]), totals[m]);
            }
        }
    }
    for (int m = 0; m < n_x; m++)
        y[m * w->n_rows + row] = _mm512_reduce_add_ps(totals[m]);
}
#endif

/* ---- rows of a matrix, specialised --------------------------------------------------------- */

typedef void rows_function(const packed_matrix *, const activations *, float *, int64_t, int64_t);

/* Rows `start` to `end` times `n` rows of activations. Every constant is known to the compiler. */
#define ROWS(target, dot, name, bits, group, has_mins, n)                                          \
    target static void name(const packed_matrix *w, const activations *a, float *y,                \
                            int64_t start, int64_t end)                                            \
    {                                                                                              \
        for (int64_t row = start; row < end; row++)                                                \
            dot(w, row, a, n, y, bits, group, has_mins);                                           \
    }

#define ROWS_OF(target, dot, name, bits, group, has_mins)                                          \
    ROWS(target, dot, name##_1, bits, group, has_mins, 1)                                          \
    ROWS(target, dot, name##_2, bits, group, has_mins, 2)                                          \
    ROWS(target, dot, name##_4, bits, group, has_mins, 4)                                          \
    ROWS(target, dot, name##_8, bits, group, has_mins, 8)

#define LAYOUTS(target, dot, level)                                                                \
    ROWS_OF(target, dot, level##_w4_16, 4, 16, 0)                                                  \
    ROWS_OF(target, dot, level##_w4_16_mins, 4, 16, 1)                                             \
    ROWS_OF(target, dot, level##_w4_32, 4, 32, 0)                                                  \
    ROWS_OF(target, dot, level##_w4_32_mins, 4, 32, 1)                                             \
    ROWS_OF(target, dot, level##_w8_16, 8, 16, 0)                                                  \
    ROWS_OF(target, dot, level##_w8_16_mins, 8, 16, 1)                                             \
    ROWS_OF(target, dot, level##_w8_32, 8, 32, 0)                                                  \
    ROWS_OF(target, dot, level##_w8_32_mins, 8, 32, 1)

#define NAMES_OF(name) {name##_1, name##_2, name##_4, name##_8}
#define NAMES(level)                                                                               \
    {                                                                                              \
        NAMES_OF(level##_w4_16), NAMES_OF(level##_w4_16_mins), NAMES_OF(level##_w4_32),            \
            NAMES_OF(level##_w4_32_mins), NAMES_OF(level##_w8_16), NAMES_OF(level##_w8_16_mins),   \
            NAMES_OF(level##_w8_32), NAMES_OF(level##_w8_32_mins)                                  \
    }

LAYOUTS(, dot_portable, portable)
#if X86
LAYOUTS(TARGET_AVX2, dot_avx2, avx2)
LAYOUTS(TARGET_AVX512, dot_avx512, avx512)
#endif

/* By instruction set, layout and 1, 2, 4 or 8 rows of activations. */
static rows_function *const FUNCTIONS[][8][4] = {
    NAMES(portable),
#if X86
    NAMES(avx2),
    NAMES(avx512),
#endif
};

/* ---- what Python calls --------------------------------------------------------------------- */

/* The best instruction set of this machine. */
int best_level(void)
{
#if X86
    if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        return AVX512_VNNI;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return AVX2;
#endif
    return PORTABLE;
}

/* ---- rounding activations, specialised ----------------------------------------------------- */

#define ROUND(target, name)                                                                        \
    target static void name(const packed_matrix *w, const float *x, activations a)                 \
    {                                                                                              \
        if (w->bits == 4)                                                                          \
            w->group == 16 ? round_row(w, x, a, 4, 16) : round_row(w, x, a, 4, 32);                \
        else                                                                                       \
            w->group == 16 ? round_row(w, x, a, 8, 16) : round_row(w, x, a, 8, 32);                \
    }

ROUND(, round_portable)
#if X86
ROUND(TARGET_AVX2, round_avx2)
ROUND(TARGET_AVX512, round_avx512)
#endif

static void (*const ROUNDERS[])(const packed_matrix *, const float *, activations) = {
    round_portable,
#if X86
    round_avx2,
    round_avx512,
#endif
};

void round_rows(const packed_matrix *w, const float *x, int n_x, activations *a, void *scratch,
                int level)
{
    int64_t padded = n_blocks(w) * BLOCK_GROUPS;
    char *next = scratch;
    for (int m = 0; m < n_x; m++) {
        a[m].scales = (float *)next;
        a[m].sums = a[m].scales + padded;
        a[m].quants = (int8_t *)(a[m].sums + padded);
        next = (char *)a[m].quants + padded * w->group;
        if (n_groups(w) < padded)
            memset(a[m].scales, 0, (size_t)(next - (char *)a[m].scales));
        ROUNDERS[level](w, x + m * w->n_columns, a[m]);
    }
}

void multiply_rows(const packed_matrix *w, const activations *a, int n_x, float *y, int64_t start,
                   int64_t end, int level)
{
    int layout = (w->bits == 8) * 4 + (w->group == 32) * 2 + (w->mins != NULL);
    for (int m = 0; m < n_x;) {
        int left = n_x - m, size = left >= 8 ? 3 : left >= 4 ? 2 : left >= 2 ? 1 : 0;
        FUNCTIONS[level][layout][size](w, a + m, y + m * w->n_rows, start, end);
        m += 1 << size;
    }
}

int64_t scratch_bytes(const packed_matrix *w, int n_x)
{
    return n_x * n_blocks(w) * BLOCK_GROUPS * (w->group + 2 * (int64_t)sizeof(float));
}

/* y (n_x, rows) = x (n_x, columns) times the weights, transposed, for 1 to 8 rows of x.
 *
 * `scratch` holds scratch_bytes(w, n_x) bytes.
 */
void multiply(const packed_matrix *w, const float *x, int n_x, float *y, void *scratch, int level)
{
    activations a[MAX_ROWS];
    round_rows(w, x, n_x, a, scratch, level);
    const int64_t step = 16; /* rows of weights that a thread takes at a time */
#pragma omp parallel for schedule(static) if (w->n_rows * w->n_columns > 65536)
    for (int64_t start = 0; start < w->n_rows; start += step)
        multiply_rows(w, a, n_x, y, start, start + step < w->n_rows ? start + step : w->n_rows,
                      level);
}
