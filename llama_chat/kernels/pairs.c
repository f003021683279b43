/* Products of bfloat16 in pairs. */

#include "pairs.h"

#include "kv_rows.h"

/* The first compiler to know them by name. */
#if X86 && (defined(__clang__) || __GNUC__ >= 10)

#include <immintrin.h>

#define TARGET_PAIRS __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))

enum { VECTORS = 4 }; /* of PADDED floats each */

int has_pairs(void) { return __builtin_cpu_supports("avx512bf16"); }

TARGET_PAIRS void round_to_pairs(float *rows, int64_t n_rows, int64_t width, int64_t step)
{
    for (int64_t r = 0; r < n_rows; r++, rows += step)
        for (int64_t i = 0; i < width; i += PADDED) {
            __m256bh halves = _mm512_cvtneps_pbh(_mm512_loadu_ps(rows + i));
            memcpy((uint16_t *)rows + i, &halves, sizeof halves);
        }
}

TARGET_PAIRS INLINE void multiply_tile(const uint32_t *a, int64_t a_row, const uint32_t *b,
                                       int64_t b_row, float *c, int64_t c_row, int64_t k,
                                       int n_vectors)
{
    __m512 sums[TILE_ROWS][VECTORS];
    for (int i = 0; i < TILE_ROWS; i++)
        for (int j = 0; j < n_vectors; j++)
            sums[i][j] = _mm512_loadu_ps(c + i * c_row + j * PADDED);
    for (int64_t l = 0; l < k; l++) {
        __m512i right[VECTORS];
        for (int j = 0; j < n_vectors; j++)
            right[j] = _mm512_loadu_si512(b + l * b_row + j * PADDED);
        for (int i = 0; i < TILE_ROWS; i++) {
            __m512i left = _mm512_set1_epi32((int32_t)a[i * a_row + l]);
            for (int j = 0; j < n_vectors; j++)
                sums[i][j] = _mm512_dpbf16_ps(sums[i][j], (__m512bh)left, (__m512bh)right[j]);
        }
    }
    for (int i = 0; i < TILE_ROWS; i++)
        for (int j = 0; j < n_vectors; j++)
            _mm512_storeu_ps(c + i * c_row + j * PADDED, sums[i][j]);
}

TARGET_PAIRS void multiply_pairs(const uint32_t *a, int64_t a_row, const uint32_t *b, int64_t b_row,
                                 float *c, int64_t c_row, int64_t rows, int64_t k, int64_t n)
{
    for (int64_t i = 0; i < rows; i += TILE_ROWS) {
        const uint32_t *left = a + i * a_row;
        int64_t j = 0;
        for (; j + VECTORS * PADDED <= n; j += VECTORS * PADDED)
            multiply_tile(left, a_row, b + j, b_row, c + i * c_row + j, c_row, k, VECTORS);
        for (; j < n; j += PADDED)
            multiply_tile(left, a_row, b + j, b_row, c + i * c_row + j, c_row, k, 1);
    }
}

#else

int has_pairs(void) { return 0; }

void round_to_pairs(float *rows, int64_t n_rows, int64_t width, int64_t step)
{
    (void)rows, (void)n_rows, (void)width, (void)step;
}

void multiply_pairs(const uint32_t *a, int64_t a_row, const uint32_t *b, int64_t b_row, float *c,
                    int64_t c_row, int64_t rows, int64_t k, int64_t n)
{
    (void)a, (void)a_row, (void)b, (void)b_row, (void)c, (void)c_row, (void)rows, (void)k, (void)n;
}

#endif
