/* AArch64 processors with products of matrices of bytes (ARMv8.6, and many since 2021). */

#include "arm_features.h"

#if HAS_ARM_TARGETS
#define LANES 4
#define REGISTERS 32

static int is_supported(void) { return has_i8mm(); }

BEGIN_TARGET("arch=armv8.2-a+i8mm")

/* Not before: for GCC, functions of a newer default target could not be inlined into these. */
#include "kernel_set.h"

#include "neon.h"

#define W8_IS_SIGNED 0
#define INTERLEAVES_SUMS

/* An instruction multiplies two rows of weights with two of activations, in eight columns: those of
 * the low and of the high quants, which zips put side by side. Its sums are
 *
 *     w0 * x0, w0 * x1, w1 * x0, w1 * x1
 *
 * so two vectors hold the sums of four rows of weights for two of activations. A single row of
 * activations would waste half of it, and is multiplied by dot products. */
INLINE integer_vector zip_low(integer_vector a, integer_vector b)
{
    return (integer_vector)vzip1q_s32((int32x4_t)a, (int32x4_t)b);
}

INLINE integer_vector zip_high(integer_vector a, integer_vector b)
{
    return (integer_vector)vzip2q_s32((int32x4_t)a, (int32x4_t)b);
}

INLINE void interleave_sums(integer_vector sums[][MAX_VECTORS], int n, int n_vectors)
{
    for (int m = 0; m + 2 <= n; m += 2)
        for (int v = 0; v < n_vectors; v++) {
            const integer_vector a = sums[m][v], b = sums[m + 1][v];
            sums[m][v] = zip_low(a, b);
            sums[m + 1][v] = zip_high(a, b);
        }
}

INLINE void deinterleave_sums(integer_vector sums[][MAX_VECTORS], int n, int n_vectors)
{
    for (int m = 0; m + 2 <= n; m += 2)
        for (int v = 0; v < n_vectors; v++) {
            const int32x4_t a = (int32x4_t)sums[m][v], b = (int32x4_t)sums[m + 1][v];
            sums[m][v] = (integer_vector)vuzp1q_s32(a, b);
            sums[m + 1][v] = (integer_vector)vuzp2q_s32(a, b);
        }
}

INLINE integer_vector add_matrix_product(integer_vector sums, integer_vector w, int8x16_t x)
{
    return (integer_vector)vusmmlaq_s32((int32x4_t)sums, (uint8x16_t)w, x);
}

INLINE integer_vector add_dot_products(integer_vector sums, byte_vector w, int8x16_t x)
{
    return (integer_vector)vusdotq_s32((int32x4_t)sums, (uint8x16_t)w, x);
}

INLINE void add_products(integer_vector sums[][MAX_VECTORS], const byte_vector *low,
                         const byte_vector *high, const int8_t *x, int n, int n_vectors, int bits)
{
    (void)bits;
    for (int v = 0; v < n_vectors; v++) {
        if (n == 1) {
            sums[0][v] = add_dot_products(sums[0][v], low[v], broadcast_four(x));
            sums[0][v] = add_dot_products(sums[0][v], high[v], broadcast_four(x + 4));
            continue;
        }
        const integer_vector a = (integer_vector)low[v], b = (integer_vector)high[v];
        const integer_vector first = zip_low(a, b), second = zip_high(a, b);
        for (int m = 0; m < n; m += 2) {
            const int8x16_t rows = load_two_rows(x + 8 * m, n);
            sums[m][v] = add_matrix_product(sums[m][v], first, rows);
            sums[m + 1][v] = add_matrix_product(sums[m + 1][v], second, rows);
        }
    }
}

#include "panel_product.h"

#include "dot_products.h"

END_TARGET
#endif

#include "kernel_set.h"

extern const kernel_set neon_kernels;

const kernel_set neon_i8mm_kernels = {
    .name = "neon_i8mm",
    .base = &neon_kernels,
#if HAS_ARM_TARGETS
    .is_supported = is_supported,
    DOT_PRODUCTS,
#endif
};
