/* x86-64 processors with AVX-512 and products of bfloat16 (Intel since Cooper Lake, AMD since
 * Zen 4): twice as many per instruction as of floats, for prefill with a cache in bfloat16. */

#include "kernel_set.h"

/* GCC supports these since version 10. */
#if X86 && (defined(__clang__) || __GNUC__ >= 10)
#define HAS_AVX512_BF16 1
#else
#define HAS_AVX512_BF16 0
#endif

#if HAS_AVX512_BF16
#include <immintrin.h>

extern const kernel_set avx512_kernels;

static int is_supported(void)
{
    return avx512_kernels.is_supported() && __builtin_cpu_supports("avx512bf16");
}

BEGIN_TARGET("avx512f,avx512bw,avx512vl,avx512bf16,avx2,fma,f16c")

enum { N_VECTORS = 4 }; /* of PADDING floats each, in a tile */

INLINE void convert_rows(float *rows, int64_t n_rows, int64_t width, int64_t stride)
{
    for (int64_t r = 0; r < n_rows; r++, rows += stride)
        for (int64_t i = 0; i < width; i += PADDING) {
            __m256bh halves = _mm512_cvtneps_pbh(_mm512_loadu_ps(rows + i));
            memcpy((uint16_t *)rows + i, &halves, sizeof halves);
        }
}

INLINE void multiply_tile(const uint32_t *a, int64_t a_stride, const uint32_t *b, int64_t b_stride,
                          float *c, int64_t c_stride, int64_t n_pairs, int n_vectors)
{
    __m512 sums[TILE_ROWS][N_VECTORS];
    for (int i = 0; i < TILE_ROWS; i++)
        for (int j = 0; j < n_vectors; j++)
            sums[i][j] = _mm512_loadu_ps(c + i * c_stride + j * PADDING);
    for (int64_t l = 0; l < n_pairs; l++) {
        __m512i right[N_VECTORS];
        for (int j = 0; j < n_vectors; j++)
            right[j] = _mm512_loadu_si512(b + l * b_stride + j * PADDING);
        for (int i = 0; i < TILE_ROWS; i++) {
            __m512i left = _mm512_set1_epi32((int32_t)a[i * a_stride + l]);
            for (int j = 0; j < n_vectors; j++)
                sums[i][j] = _mm512_dpbf16_ps(sums[i][j], (__m512bh)left, (__m512bh)right[j]);
        }
    }
    for (int i = 0; i < TILE_ROWS; i++)
        for (int j = 0; j < n_vectors; j++)
            _mm512_storeu_ps(c + i * c_stride + j * PADDING, sums[i][j]);
}

INLINE void multiply_pairs(const uint32_t *a, int64_t a_stride, const uint32_t *b, int64_t b_stride,
                           float *c, int64_t c_stride, int64_t rows, int64_t n_pairs, int64_t n)
{
    for (int64_t i = 0; i < rows; i += TILE_ROWS) {
        const uint32_t *left = a + i * a_stride;
        int64_t j = 0;
        for (; j + N_VECTORS * PADDING <= n; j += N_VECTORS * PADDING)
            multiply_tile(left, a_stride, b + j, b_stride, c + i * c_stride + j, c_stride, n_pairs,
                          N_VECTORS);
        for (; j < n; j += PADDING)
            multiply_tile(left, a_stride, b + j, b_stride, c + i * c_stride + j, c_stride, n_pairs,
                          1);
    }
}

#include "prefill_bf16.h"

static void attend_block(const kv_cache *cache, int64_t layer, const float *q, int64_t head,
                         range tokens, float *out, const prefill_buffers *buffers)
{
    if (cache->kind == BFLOAT16)
        attend_tokens(cache, layer, q, head, tokens, out, buffers, BFLOAT16);
    else
        avx512_kernels.attend_block(cache, layer, q, head, tokens, out, buffers);
}

END_TARGET
#endif

const kernel_set avx512_bf16_kernels = {
    .name = "avx512_bf16",
#if HAS_AVX512_BF16
    .is_supported = is_supported,
    .base = &avx512_kernels,
    .attend_block = attend_block,
#endif
};
