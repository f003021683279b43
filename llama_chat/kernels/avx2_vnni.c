/* x86-64 processors with AVX2 and VNNI but no AVX-512 (Intel since Alder Lake). */

#include "kernel_set.h"

/* GCC supports it since version 11, Clang since 12. */
#if X86 && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define HAS_AVX2_VNNI 1
#else
#define HAS_AVX2_VNNI 0
#endif

extern const kernel_set avx2_kernels;

#if HAS_AVX2_VNNI
#include <cpuid.h>
#include <immintrin.h>

#define LANES 8
#define REGISTERS 16

/* AVX-512 has the same instructions in another encoding, in which tests run them. */
#ifdef TEST_VNNI_OF_AVX512
#define VNNI "avx512vl,avx512vnni"

static int has_vnni(void)
{
    return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}
#else
#define VNNI "avxvnni"

static int has_vnni(void)
{
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1;
}
#endif

static int is_supported(void) { return avx2_kernels.is_supported() && has_vnni(); }

BEGIN_TARGET("avx2,fma,f16c," VNNI)

#include "avx2.h"

/* A panel is read once for two rows, too: intermediate products need no registers. */
#define VECTORS_AT_ONCE(n) ((n) <= 2 ? 2 : 1)

INLINE integer_vector sum_of_products(integer_vector sums, byte_vector a, integer_vector b)
{
    return (integer_vector)_mm256_dpbusd_epi32((__m256i)sums, (__m256i)a, (__m256i)b);
}

#include "vnni.h"

#include "dot_products.h"

END_TARGET
#endif

const kernel_set avx2_vnni_kernels = {
    .name = "avx2_vnni",
    .base = &avx2_kernels,
#if HAS_AVX2_VNNI
    .is_supported = is_supported,
    DOT_PRODUCTS,
#endif
};
