/* AArch64 processors with dot products of bytes (ARMv8.4, and most since 2018). */

#include "arm_features.h"

#if HAS_ARM_TARGETS
#define LANES 4
#define REGISTERS 32

static int is_supported(void) { return has_dotprod(); }

BEGIN_TARGET("arch=armv8.2-a+dotprod")

/* Not before: for GCC, functions of a newer default target could not be inlined into these. */
#include "kernel_set.h"

#include "neon.h"

#define W8_IS_SIGNED 1

/* Add the products with one lane of x; the instruction has the number of the lane in it. */
INLINE int32x4_t add_lane(int32x4_t sums, byte_vector weights, int8x16_t x, int lane)
{
    const int8x16_t a = (int8x16_t)weights;
    switch (lane) {
    case 0: return vdotq_laneq_s32(sums, a, x, 0);
    case 1: return vdotq_laneq_s32(sums, a, x, 1);
    case 2: return vdotq_laneq_s32(sums, a, x, 2);
    default: return vdotq_laneq_s32(sums, a, x, 3);
    }
}

INLINE void add_products(integer_vector sums[][MAX_VECTORS], const byte_vector *low,
                         const byte_vector *high, const int8_t *x, int n, int n_vectors, int bits)
{
    (void)bits;
    for (int m = 0; m < n; m++) {
        const int8x16_t rows = load_two_rows(x + m / 2 * 16, n);
        for (int v = 0; v < n_vectors; v++) {
            const int32x4_t sum = add_lane((int32x4_t)sums[m][v], low[v], rows, m % 2 * 2);
            sums[m][v] = (integer_vector)add_lane(sum, high[v], rows, m % 2 * 2 + 1);
        }
    }
}

#include "panel_product.h"

#include "dot_products.h"

END_TARGET
#endif

#include "kernel_set.h"

extern const kernel_set neon_kernels;

const kernel_set neon_dotprod_kernels = {
    .name = "neon_dotprod",
    .base = &neon_kernels,
#if HAS_ARM_TARGETS
    .is_supported = is_supported,
    DOT_PRODUCTS,
#endif
};
