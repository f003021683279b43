/* x86-64 processors with AVX-512 and VNNI (Intel since Cascade Lake, AMD since Zen 4). */

#include "kernel_set.h"

#if X86
#include <immintrin.h>

extern const kernel_set avx2_kernels;

#define LANES 16
#define REGISTERS 32

/* Sums of twelve rows fit in the registers, together with the weights. With sixteen, which are usual
 * for many sequences at once, some totals are in memory, and a panel is still unpacked only once. */
#define FOR_TILE_SIZES(DO, ...)                                                                    \
    DO(1, __VA_ARGS__)                                                                             \
    DO(2, __VA_ARGS__)                                                                             \
    DO(4, __VA_ARGS__)                                                                             \
    DO(8, __VA_ARGS__)                                                                             \
    DO(12, __VA_ARGS__)                                                                            \
    DO(16, __VA_ARGS__)

#define VECTORS_AT_ONCE(n) 1
#define PANELS_AT_ONCE 2

static int is_supported(void)
{
    return avx2_kernels.is_supported() && __builtin_cpu_supports("avx512vnni") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}

BEGIN_TARGET("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")

#include "vectors.h"

INLINE vector load_f16(const uint16_t *from)
{
    return (vector)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
}

INLINE integer_vector sum_of_products(integer_vector sums, byte_vector a, integer_vector b)
{
    return (integer_vector)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)a, (__m512i)b);
}

#include "vnni.h"

#include "generic_kernels.h"

INLINE __m512i rounded_integers(__m512 shifted)
{
    return _mm512_sub_epi32(_mm512_castps_si512(shifted), _mm512_set1_epi32(ROUNDING_BITS));
}

/* Quantize a row of float32 as quantize_row() does, four times as fast. */
INLINE void quantize_floats(const float *x, int64_t n_columns, int group, int n, int m,
                            uint8_t *tile)
{
    const __m512 infinity = _mm512_set1_ps(INFINITY), shift = _mm512_set1_ps(ROUNDING);
    uint8_t *to = tile;
    for (int64_t g = 0; g < n_columns; g += group, to += n * tile_group_bytes(group)) {
        __m512 sizes = _mm512_setzero_ps();
        __mmask16 not_finite = 0;
        for (int i = 0; i < group; i += LANES) {
            const __m512 size = _mm512_abs_ps(_mm512_loadu_ps(x + g + i));
            not_finite |= _mm512_cmp_ps_mask(size, infinity, _CMP_NLT_UQ);
            sizes = _mm512_max_ps(sizes, size);
        }
        const float max = _mm512_reduce_max_ps(sizes), scale = not_finite ? NAN : max / 127;
        const __m512 inverse = _mm512_set1_ps(quantizing_factor(max));
        __m512i sums = _mm512_setzero_si512();
        __m128i bytes[2];
        for (int i = 0; i < group; i += LANES) {
            const __m512 shifted = _mm512_fmadd_ps(_mm512_loadu_ps(x + g + i), inverse, shift);
            const __m512i quants = rounded_integers(shifted);
            sums = _mm512_add_epi32(sums, quants);
            bytes[i / LANES] = _mm512_cvtepi32_epi8(quants);
        }
        int64_t steps[4];
        if (group == 32) {
            _mm_storeu_si128((__m128i *)steps, _mm_unpacklo_epi32(bytes[0], bytes[1]));
            _mm_storeu_si128((__m128i *)(steps + 2), _mm_unpackhi_epi32(bytes[0], bytes[1]));
        } else
            _mm_storeu_si128((__m128i *)steps,
                             _mm_shuffle_epi32(bytes[0], _MM_SHUFFLE(3, 1, 2, 0)));
        for (int step = 0; step < group / 8; step++)
            memcpy(to + 8 * (step * n + m), steps + step, 8);
        store_row_numbers((float *)(to + n * group), group, n, m, scale,
                          _mm512_reduce_add_epi32(sums));
    }
}

static void quantize_any_row(const void *x, int is_bf16, int64_t n_columns, int group, int n, int m,
                             uint8_t *tile)
{
    if (is_bf16)
        quantize_row(x, is_bf16, n_columns, group, n, m, tile);
    else if (group == 32)
        quantize_floats(x, n_columns, 32, n, m, tile);
    else
        quantize_floats(x, n_columns, 16, n, m, tile);
}

END_TARGET
#endif

const kernel_set avx512_kernels = {
    .name = "avx512",
#if X86
    .is_supported = is_supported,
    GENERIC_KERNELS,
    .quantize_row = quantize_any_row,
#endif
};
