/* Products of packed weights with rows of activations.
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

/* Bytes of rounded rows that stay in a core's own cache while all panels pass by. */
enum { TILE_BLOCK = 1 << 19 };

/* Four neighbouring quants of activations, as a number to be spread over a vector. */
INLINE int32_t four(const int8_t *x)
{
    int32_t number;
    memcpy(&number, x, 4);
    return number;
}

/* What an integer sum begins with: W8 is stored as q + 128, and W4 with minima as it is. */
INLINE int32_t begin_of(int32_t begin, int bits, int has_mins)
{
    return bits == 8 ? 16 * begin : has_mins ? 0 : begin;
}

/* ---- portable ------------------------------------------------------------------------------ */

INLINE void dot_portable(const uint8_t *block, int64_t groups, const uint8_t *tile, float *out,
                         int bits, int group, int has_mins, int n)
{
    const int chunks = (int)(quant_bytes(bits, group) / CHUNK);
    float totals[MAX_TILE][PANEL] = {{0}};
    for (int64_t g = 0; g < groups; g++, block += block_bytes(bits, group, has_mins)) {
        tile_group x = group_of(tile, g, group, n);
        float scales[PANEL], mins[PANEL];
        for (int r = 0; r < PANEL; r++) {
            uint16_t numbers[2] = {0, 0};
            memcpy(numbers, block + chunks * CHUNK + 2 * r, 2);
            if (has_mins)
                memcpy(numbers + 1, block + chunks * CHUNK + 2 * (PANEL + r), 2);
            scales[r] = half_to_float(numbers[0]);
            mins[r] = half_to_float(numbers[1]);
        }
        for (int m = 0; m < n; m++) {
            int32_t dots[PANEL];
            for (int r = 0; r < PANEL; r++)
                dots[r] = begin_of(x.begin[m], bits, has_mins);
            for (int c = 0; c < chunks; c++) {
                const uint8_t *q = block + c * CHUNK;
                const int8_t *low = x.quants + 4 * (c * n + m);
                const int8_t *high = low + 4 * chunks * n;
                for (int r = 0; r < PANEL; r++)
                    for (int j = 0; j < 4; j++)
                        dots[r] += bits == 8 ? q[4 * r + j] * low[j]
                                             : (q[4 * r + j] & 15) * low[j] +
                                                   (q[4 * r + j] >> 4) * high[j];
            }
            for (int r = 0; r < PANEL; r++)
                totals[m][r] +=
                    scales[r] * x.scales[m] * (float)dots[r] + (has_mins ? mins[r] * x.sums[m] : 0);
        }
    }
    memcpy(out, totals, sizeof totals[0] * (size_t)n);
}

#if X86
/* ---- AVX2 ---------------------------------------------------------------------------------- */

#define INLINE_AVX2 TARGET_AVX2 INLINE

/* Sums of four neighbouring products, each of at most 128 * 127. */
INLINE_AVX2 __m256i products_avx2(__m256i unsigned_a, __m256i signed_b)
{
    return _mm256_madd_epi16(_mm256_maddubs_epi16(unsigned_a, signed_b), _mm256_set1_epi16(1));
}

INLINE_AVX2 void dot_avx2(const uint8_t *panel, int64_t groups, const uint8_t *tile, float *out,
                          int bits, int group, int has_mins, int n)
{
    const int chunks = (int)(quant_bytes(bits, group) / CHUNK);
    const __m256i low_half = _mm256_set1_epi8(15), flip = _mm256_set1_epi8((char)0x80);
    for (int side = 0; side < 2; side++) { /* eight rows at a time */
        const uint8_t *block = panel;
        __m256 totals[MAX_TILE];
        for (int m = 0; m < n; m++)
            totals[m] = _mm256_setzero_ps();
        for (int64_t g = 0; g < groups; g++, block += block_bytes(bits, group, has_mins)) {
            tile_group x = group_of(tile, g, group, n);
            __m256i dots[MAX_TILE];
            for (int m = 0; m < n; m++) /* bytes of W8 are made signed again */
                dots[m] = _mm256_set1_epi32(bits == 8 ? 0 : begin_of(x.begin[m], bits, has_mins));
            for (int c = 0; c < chunks; c++) {
                __m256i v = _mm256_loadu_si256((const __m256i *)(block + c * CHUNK + 32 * side));
                __m256i low = _mm256_and_si256(v, low_half);
                __m256i high = _mm256_and_si256(_mm256_srli_epi16(v, 4), low_half);
                __m256i sign = _mm256_xor_si256(v, flip), magnitude = _mm256_abs_epi8(sign);
                for (int m = 0; m < n; m++) {
                    const int8_t *at = x.quants + 4 * (c * n + m);
                    __m256i first = _mm256_set1_epi32(four(at)), dot;
                    if (bits == 8)
                        dot = products_avx2(magnitude, _mm256_sign_epi8(first, sign));
                    else
                        dot = _mm256_add_epi32(
                            products_avx2(low, first),
                            products_avx2(high, _mm256_set1_epi32(four(at + 4 * chunks * n))));
                    dots[m] = _mm256_add_epi32(dots[m], dot);
                }
            }
            const __m128i *numbers = (const __m128i *)(block + chunks * CHUNK) + side;
            __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128(numbers));
            for (int m = 0; m < n; m++)
                totals[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[m]),
                                            _mm256_mul_ps(scale, _mm256_set1_ps(x.scales[m])),
                                            totals[m]);
            if (!has_mins)
                continue;
            __m256 min = _mm256_cvtph_ps(_mm_loadu_si128(numbers + 2));
            for (int m = 0; m < n; m++)
                totals[m] = _mm256_fmadd_ps(min, _mm256_set1_ps(x.sums[m]), totals[m]);
        }
        for (int m = 0; m < n; m++)
            _mm256_storeu_ps(out + m * PANEL + 8 * side, totals[m]);
    }
}

/* ---- AVX-512 with VNNI --------------------------------------------------------------------- */

#define INLINE_AVX512 TARGET_AVX512 INLINE

INLINE_AVX512 void dot_avx512(const uint8_t *block, int64_t groups, const uint8_t *tile, float *out,
                              int bits, int group, int has_mins, int n)
{
    const int chunks = (int)(quant_bytes(bits, group) / CHUNK);
    const __m512i low_half = _mm512_set1_epi8(15);
    __m512 totals[MAX_TILE];
    for (int m = 0; m < n; m++)
        totals[m] = _mm512_setzero_ps();
    for (int64_t g = 0; g < groups; g++, block += block_bytes(bits, group, has_mins)) {
        tile_group x = group_of(tile, g, group, n);
        __m512i dots[MAX_TILE];
        for (int m = 0; m < n; m++)
            dots[m] = _mm512_set1_epi32(begin_of(x.begin[m], bits, has_mins));
        for (int c = 0; c < chunks; c++) {
            __m512i v = _mm512_loadu_si512(block + c * CHUNK);
            __m512i low = _mm512_and_si512(v, low_half);
            __m512i high = _mm512_and_si512(_mm512_srli_epi16(v, 4), low_half);
            for (int m = 0; m < n; m++) {
                const int8_t *at = x.quants + 4 * (c * n + m);
                dots[m] = _mm512_dpbusd_epi32(dots[m], bits == 8 ? v : low,
                                              _mm512_set1_epi32(four(at)));
            }
            if (bits == 4)
                for (int m = 0; m < n; m++) {
                    const int8_t *at = x.quants + 4 * ((chunks + c) * n + m);
                    dots[m] = _mm512_dpbusd_epi32(dots[m], high, _mm512_set1_epi32(four(at)));
                }
        }
        const __m256i *numbers = (const __m256i *)(block + chunks * CHUNK);
        __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256(numbers));
        for (int m = 0; m < n; m++)
            totals[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[m]),
                                        _mm512_mul_ps(scale, _mm512_set1_ps(x.scales[m])),
                                        totals[m]);
        if (!has_mins)
            continue;
        __m512 min = _mm512_cvtph_ps(_mm256_loadu_si256(numbers + 1));
        for (int m = 0; m < n; m++)
            totals[m] = _mm512_fmadd_ps(min, _mm512_set1_ps(x.sums[m]), totals[m]);
    }
    for (int m = 0; m < n; m++)
        _mm512_storeu_ps(out + m * PANEL, totals[m]);
}
#endif

/* ---- every layout and every size of a tile ------------------------------------------------- */

/* A panel times a tile, into `out` (n, PANEL). */
typedef void dot_function(const uint8_t *panel, int64_t groups, const uint8_t *tile, float *out);

/* Every constant is known to the compiler. */
#define DOT(target, dot, name, bits, group, has_mins, n)                                           \
    target static void name##_##n(const uint8_t *panel, int64_t groups, const uint8_t *tile,       \
                                  float *out)                                                      \
    {                                                                                              \
        dot(panel, groups, tile, out, bits, group, has_mins, n);                                   \
    }

#define SMALL_DOTS(target, dot, name, bits, group, has_mins)                                       \
    DOT(target, dot, name, bits, group, has_mins, 1)                                               \
    DOT(target, dot, name, bits, group, has_mins, 2)                                               \
    DOT(target, dot, name, bits, group, has_mins, 4)

#define ALL_DOTS(target, dot, name, bits, group, has_mins)                                         \
    SMALL_DOTS(target, dot, name, bits, group, has_mins)                                           \
    DOT(target, dot, name, bits, group, has_mins, 8)                                               \
    DOT(target, dot, name, bits, group, has_mins, 12)

#define LAYOUTS(DOTS, target, dot, level)                                                          \
    DOTS(target, dot, level##_w4_16, 4, 16, 0)                                                     \
    DOTS(target, dot, level##_w4_16_mins, 4, 16, 1)                                                \
    DOTS(target, dot, level##_w4_32, 4, 32, 0)                                                     \
    DOTS(target, dot, level##_w4_32_mins, 4, 32, 1)                                                \
    DOTS(target, dot, level##_w8_16, 8, 16, 0)                                                     \
    DOTS(target, dot, level##_w8_16_mins, 8, 16, 1)                                                \
    DOTS(target, dot, level##_w8_32, 8, 32, 0)                                                     \
    DOTS(target, dot, level##_w8_32_mins, 8, 32, 1)

#define SMALL_NAMES(name) {name##_1, name##_2, name##_4}
#define ALL_NAMES(name) {name##_1, name##_2, name##_4, name##_8, name##_12}
#define NAMES(NAMES_OF, level)                                                                     \
    {                                                                                              \
        NAMES_OF(level##_w4_16), NAMES_OF(level##_w4_16_mins), NAMES_OF(level##_w4_32),            \
            NAMES_OF(level##_w4_32_mins), NAMES_OF(level##_w8_16), NAMES_OF(level##_w8_16_mins),   \
            NAMES_OF(level##_w8_32), NAMES_OF(level##_w8_32_mins)                                  \
    }

LAYOUTS(SMALL_DOTS, , dot_portable, portable)
#if X86
LAYOUTS(SMALL_DOTS, TARGET_AVX2, dot_avx2, avx2)
LAYOUTS(ALL_DOTS, TARGET_AVX512, dot_avx512, avx512)
#endif

/* By instruction set, layout and SIZES. */
static dot_function *const DOTS[][8][5] = {
    NAMES(SMALL_NAMES, portable),
#if X86
    NAMES(SMALL_NAMES, avx2),
    NAMES(ALL_NAMES, avx512),
#endif
};

/* ---- products ------------------------------------------------------------------------------ */

/* Part of a row of y (…, rows): what is behind its end, in the last panel, is left out. */
INLINE void store(const packed_matrix *w, const float *values, void *y, int narrow, int m,
                  int64_t panel)
{
    const int64_t row = panel * PANEL, at = m * w->n_rows + row;
    const int n = (int)(w->n_rows - row < PANEL ? w->n_rows - row : PANEL);
    uint16_t halves[PANEL];
    if (narrow)
        for (int i = 0; i < PANEL; i++)
            halves[i] = to_bfloat16(values[i]);
    char *to = (char *)y + at * (narrow ? 2 : 4);
    const void *from = narrow ? (const void *)halves : values;
    if (n == PANEL) /* a copy of known size needs no call */
        narrow ? memcpy(to, from, 2 * PANEL) : memcpy(to, from, 4 * PANEL);
    else
        memcpy(to, from, (size_t)n * (narrow ? 2 : 4));
}

/* As many rows of activations as stay in a core's own cache while all panels pass by. */
INLINE int block_rows(const packed_matrix *w, int level)
{
    const int tile = largest_tile(level);
    int64_t n_tiles = TILE_BLOCK / (tile * rounded_bytes(w->n_columns, w->group));
    return tile * (int)(n_tiles > 1 ? n_tiles : 1);
}

void multiply_panels(const packed_matrix *w, const uint8_t *rounded, int n_x, void *y, int narrow,
                     int64_t first, int64_t end, int level)
{
    const int layout = (w->bits == 8) * 4 + (w->group == 32) * 2 + w->has_mins;
    const int64_t row_bytes = rounded_bytes(w->n_columns, w->group);
    const int block = block_rows(w, level);
    for (int start = 0; start < n_x; start += block)
        for (int64_t panel = first; panel < end; panel++)
            for (int m = start; m < start + block && m < n_x;) {
                float out[MAX_TILE * PANEL];
                int size = index_of_size(n_x - m, level), n = SIZES[size];
                DOTS[level][layout][size](w->panels + panel * panel_bytes(w), n_groups(w),
                                          rounded + m * row_bytes, out);
                for (int i = 0; i < n; i++)
                    store(w, out + i * PANEL, y, narrow, m + i, panel);
                m += n;
            }
}

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

/* y (n_x, rows) = x (n_x, columns) times the weights, transposed.
 *
 * Both are bfloat16 (`narrow`) or float32. `scratch` holds rounded_bytes() for each row of x.
 */
void multiply(const packed_matrix *w, const void *x, int n_x, void *y, int narrow, uint8_t *scratch,
              int level)
{
    const int64_t x_bytes = w->n_columns * (narrow ? 2 : 4);
    const int64_t row_bytes = rounded_bytes(w->n_columns, w->group);
    const int tile = largest_tile(level);
#pragma omp parallel if (n_x * w->n_rows * w->n_columns > 65536)
    {
#pragma omp for schedule(static)
        for (int start = 0; start < n_x; start += tile)
            for (int m = start; m < n_x && m < start + tile;) {
                int n = tile_size(n_x - m, level);
                round_tile((const char *)x + m * x_bytes, narrow, w->n_columns, w->group, n,
                           scratch + m * row_bytes, level);
                m += n;
            }
        const int64_t steps = 8 * (int64_t)omp_get_num_threads();
#pragma omp for schedule(dynamic)
        for (int64_t step = 0; step < steps; step++)
            multiply_panels(w, scratch, n_x, y, narrow, n_panels(w) * step / steps,
                            n_panels(w) * (step + 1) / steps, level);
    }
}
