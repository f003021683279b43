/* x86-64 processors with AVX2 (Intel since 2013, AMD since 2015). */

#include "kernel_set.h"

#if X86
#include <cpuid.h>
#include <immintrin.h>

#define LANES 8
#define REGISTERS 16

static int is_supported(void)
{
    unsigned a, b, c, d; /* Clang before 19 and GCC before 11 do not know "f16c" */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}

BEGIN_TARGET("avx2,fma,f16c")

#include "avx2.h"

/* For one row, a panel is read once, from front to back; for two rows, Clang would spill
 * registers. */
#define VECTORS_AT_ONCE(n) ((n) == 1 ? 2 : 1)

#define W8_IS_SIGNED 1

/* Add two neighbouring products of at most 128 * 127 in 16 bits, which overflow for more. */
INLINE __m256i sums_of_two_products(__m256i signed_a, __m256i signed_b)
{
    return _mm256_maddubs_epi16(_mm256_abs_epi8(signed_a), _mm256_sign_epi8(signed_b, signed_a));
}

INLINE void add_products(integer_vector sums[][MAX_VECTORS], const byte_vector *low,
                         const byte_vector *high, const int8_t *x, int n, int n_vectors, int bits)
{
    const __m256i ones = _mm256_set1_epi16(1);
    for (int m = 0; m < n; m++) {
        const __m256i x_a = (__m256i)broadcast_quants(x + 8 * m);
        const __m256i x_b = (__m256i)broadcast_quants(x + 8 * m + 4);
        for (int v = 0; v < n_vectors; v++) {
            const __m256i a = (__m256i)low[v], b = (__m256i)high[v];
            if (bits == 8) {
                sums[m][v] += (integer_vector)_mm256_madd_epi16(sums_of_two_products(a, x_a), ones);
                sums[m][v] += (integer_vector)_mm256_madd_epi16(sums_of_two_products(b, x_b), ones);
            } else /* four products of at most 63 * 127 fit in 16 bits */
                sums[m][v] += (integer_vector)_mm256_madd_epi16(
                    _mm256_add_epi16(_mm256_maddubs_epi16(a, x_a), _mm256_maddubs_epi16(b, x_b)),
                    ones);
        }
    }
}

#include "panel_product.h"

#include "generic_kernels.h"

END_TARGET
#endif

const kernel_set avx2_kernels = {
    .name = "avx2",
#if X86
    .is_supported = is_supported,
    GENERIC_KERNELS,
    .quantize_row = quantize_row,
#endif
};
