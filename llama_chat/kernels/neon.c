/* All 64-bit ARM processors: NEON is a part of AArch64. */

#include "kernel_set.h"

#if ARM64
#define LANES 4
#define REGISTERS 32

static int is_supported(void) { return 1; }

#include "neon.h"

#define W8_IS_SIGNED 1

/* Add four neighbouring numbers of the rows 0 and 1, and of the rows 2 and 3. Pairs of them fit in
 * 16 bits: two products of at most 128 * 127, or four of at most 63 * 127. */
INLINE integer_vector add_fours(integer_vector sums, int16x8_t first, int16x8_t second)
{
    return (integer_vector)vpadalq_s16((int32x4_t)sums, vpaddq_s16(first, second));
}

INLINE void add_products(integer_vector sums[][MAX_VECTORS], const byte_vector *low,
                         const byte_vector *high, const int8_t *x, int n, int n_vectors, int bits)
{
    for (int m = 0; m < n; m++) {
        const int8x16_t x_a = broadcast_four(x + 8 * m), x_b = broadcast_four(x + 8 * m + 4);
        for (int v = 0; v < n_vectors; v++) {
            const int8x16_t a = (int8x16_t)low[v], b = (int8x16_t)high[v];
            int16x8_t first = vmull_s8(vget_low_s8(a), vget_low_s8(x_a));
            int16x8_t second = vmull_high_s8(a, x_a);
            if (bits == 8) {
                sums[m][v] = add_fours(sums[m][v], first, second);
                first = vmull_s8(vget_low_s8(b), vget_low_s8(x_b));
                second = vmull_high_s8(b, x_b);
            } else {
                first = vmlal_s8(first, vget_low_s8(b), vget_low_s8(x_b));
                second = vmlal_high_s8(second, b, x_b);
            }
            sums[m][v] = add_fours(sums[m][v], first, second);
        }
    }
}

#include "panel_product.h"

#include "generic_kernels.h"
#endif

const kernel_set neon_kernels = {
    .name = "neon",
#if ARM64
    .is_supported = is_supported,
    GENERIC_KERNELS,
    .quantize_row = quantize_row,
#endif
};
