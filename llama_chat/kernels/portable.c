/* Any processor: plain C, with vectors of four floats. */

#include "kernel_set.h"

#define LANES 4
#define REGISTERS 16

/* Larger tiles would not fit in the registers. */
#define FOR_TILE_SIZES(DO, ...) DO(1, __VA_ARGS__) DO(2, __VA_ARGS__) DO(4, __VA_ARGS__)

static int is_supported(void) { return 1; }

/* Load the scales or minima of a block as floats. */
INLINE void load_scales(const uint8_t *from, const float *super_scales, packed_layout layout,
                        float *to)
{
    for (int r = 0; r < PANEL; r++)
        to[r] = layout.groups_per_super_block ? super_scales[r] * (float)((const int8_t *)from)[r]
                                              : load_half(from + 2 * r);
}

INLINE void load_halves(const uint8_t *from, float *to)
{
    for (int r = 0; r < PANEL; r++)
        to[r] = load_half(from + 2 * r);
}

/* Add the products of one chunk with one row of a tile, whose quants are `low` and `high`. */
INLINE void multiply_chunk(const uint8_t *block, int c, const int8_t *low, const int8_t *high,
                           packed_layout layout, int32_t *dots)
{
    const uint8_t *q = block + c * CHUNK;
    const uint8_t *upper = block + upper_chunk(layout) * CHUNK;
    const int shift = upper_shift(c, layout), mask = upper_bits(layout);
    for (int r = 0; r < PANEL; r++)
        for (int j = 0; j < 4; j++) {
            const int i = 4 * r + j, above = mask ? upper[i] >> shift : 0;
            int first = (q[i] & 15) + ((above & mask) << 4);
            int second = (q[i] >> 4) + (above & mask << 4);
            if (layout.is_iq4)
                first = IQ4_TABLE[first], second = IQ4_TABLE[second];
            dots[r] += layout.bits == 8 ? q[i] * low[j] : first * low[j] + second * high[j];
        }
}

/* Multiply a panel. Activations are quantized to 8 bits per group with a float scale, so that for a
 * group
 *
 *     sum(w * x)  ~  scale * x_scale * sum(q * x_q)  +  min * x_scale * sum(x_q)
 *
 * where both sums are of integers. The second is over quantized activations, not the original ones:
 * so their errors are multiplied by the weights, which are centred on zero, and not by the quants,
 * which need not be.
 */
INLINE void multiply_panel(const uint8_t *block, int64_t n_groups, const uint8_t *tile, float *out,
                           int64_t out_stride, packed_layout layout, int n)
{
    const int chunks = low_chunks(layout), group = layout.group, steps = group / 8;
    float totals[MAX_TILE][PANEL] = {{0}}, super_scales[PANEL] = {0}, super_mins[PANEL] = {0};
    for (int64_t g = 0; g < n_groups; g++, block += block_bytes(layout)) {
        tile_group x = tile_group_at(tile, g, group, n);
        float scales[PANEL], mins[PANEL];
        if (begins_super_block(layout, g)) {
            load_halves(block, super_scales);
            if (layout.has_mins)
                load_halves(block + 2 * PANEL, super_mins);
            block += super_scale_bytes(layout);
        }
        const uint8_t *block_scales = block + quant_bytes(layout);
        load_scales(block_scales, super_scales, layout, scales);
        if (layout.has_mins)
            load_scales(block_scales + scale_bytes(layout), super_mins, layout, mins);
        for (int m = 0; m < n; m++) {
            int32_t dots[PANEL];
            for (int r = 0; r < PANEL; r++)
                dots[r] = first_sum(x, m, layout) - ROUNDING_BITS;
            for (int c = 0; c < chunks; c++) {
                const int8_t *low = x.quants + 8 * (c % steps * n + m) + c / steps * 4;
                multiply_chunk(block, c, low, low + 4, layout, dots);
            }
            for (int r = 0; r < PANEL; r++)
                totals[m][r] += scales[r] * x.scales[m] * (float)dots[r] +
                                (layout.has_mins ? mins[r] * x.sums[m] : 0);
        }
    }
    for (int m = 0; m < n; m++)
        memcpy(out + m * out_stride, totals[m], sizeof totals[m]);
}

#include "vectors.h"

/* Load four numbers in float16. */
INLINE vector load_f16(const uint16_t *from)
{
    return (vector){half_to_float(from[0]), half_to_float(from[1]), half_to_float(from[2]),
                    half_to_float(from[3])};
}

#include "generic_kernels.h"

const kernel_set portable_kernels = {
    .name = "portable",
    .is_supported = is_supported,
    GENERIC_KERNELS,
    .quantize_row = quantize_row,
};
