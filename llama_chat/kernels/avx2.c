/* x86-64 processors with AVX2 (Intel since 2013, AMD since 2015). */

#include "kernel_set.h"

#if X86
#include <immintrin.h>

#define LANES 8

/* Larger tiles would not fit in sixteen registers. */
#define FOR_TILE_SIZES(DO, ...) DO(1, __VA_ARGS__) DO(2, __VA_ARGS__) DO(4, __VA_ARGS__)

static int is_supported(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

BEGIN_TARGET("avx2,fma,f16c")

/* Add four neighbouring products, each of at most 128 * 127. */
INLINE __m256i sum_of_four_products(__m256i unsigned_a, __m256i signed_b)
{
    return _mm256_madd_epi16(_mm256_maddubs_epi16(unsigned_a, signed_b), _mm256_set1_epi16(1));
}

INLINE __m256 load_halves(const uint8_t *from)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
}

/* Load the scales or minima of eight rows. */
INLINE __m256 load_scales(const uint8_t *from, int side, __m256 super_scales, packed_layout layout)
{
    if (!layout.groups_per_super_block)
        return load_halves(from + 16 * side);
    __m256i whole = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(from + 8 * side)));
    return _mm256_mul_ps(super_scales, _mm256_cvtepi32_ps(whole));
}

/* Multiply eight rows of a panel; the formula is in portable.c. */
INLINE void multiply_half_panel(const uint8_t *block, int side, int64_t n_groups,
                                const uint8_t *tile, float *out, int64_t out_stride,
                                packed_layout layout, int n)
{
    const int chunks = low_chunks(layout), group = layout.group, bits = layout.bits;
    const __m256i low_nibbles = _mm256_set1_epi8(15), flip = _mm256_set1_epi8((char)0x80);
    const __m256i two_bits = _mm256_set1_epi8(0x30);
    __m256 totals[MAX_TILE], super_scales = _mm256_setzero_ps(), super_mins = super_scales;
    for (int m = 0; m < n; m++)
        totals[m] = _mm256_setzero_ps();
    for (int64_t g = 0; g < n_groups; g++, block += block_bytes(layout)) {
        tile_group x = tile_group_at(tile, g, group, n);
        __m256i dots[MAX_TILE];
        if (begins_super_block(layout, g)) {
            super_scales = load_halves(block + 16 * side);
            if (layout.has_mins)
                super_mins = load_halves(block + 2 * PANEL + 16 * side);
            block += super_scale_bytes(layout);
        }
        for (int m = 0; m < n; m++) /* W8 is converted back to signed below */
            dots[m] = _mm256_set1_epi32(bits == 8 ? 0 : initial_sum(x.w4_offsets[m], layout));
        for (int c = 0; c < chunks; c++) {
            const uint8_t *at = block + 32 * side;
            __m256i v = _mm256_loadu_si256((const __m256i *)(at + c * CHUNK));
            __m256i low = _mm256_and_si256(v, low_nibbles);
            __m256i high = _mm256_and_si256(_mm256_srli_epi16(v, 4), low_nibbles);
            __m256i sign = _mm256_xor_si256(v, flip), magnitude = _mm256_abs_epi8(sign);
            if (bits == 6) {
                const void *above = at + upper_chunk(c, group) * CHUNK;
                __m256i upper = _mm256_loadu_si256((const __m256i *)above);
                upper = _mm256_srli_epi16(upper, upper_shift(c, group));
                low = _mm256_or_si256(low, _mm256_and_si256(_mm256_slli_epi16(upper, 4), two_bits));
                high = _mm256_or_si256(high, _mm256_and_si256(upper, two_bits));
            }
            for (int m = 0; m < n; m++) {
                const int8_t *from = x.quants + 4 * (c * n + m);
                __m256i first = _mm256_set1_epi32(load_four_quants(from)), dot;
                if (bits == 8)
                    dot = sum_of_four_products(magnitude, _mm256_sign_epi8(first, sign));
                else
                    dot = _mm256_add_epi32(
                        sum_of_four_products(low, first),
                        sum_of_four_products(
                            high, _mm256_set1_epi32(load_four_quants(from + 4 * chunks * n))));
                dots[m] = _mm256_add_epi32(dots[m], dot);
            }
        }
        const uint8_t *scales = block + quant_bytes(layout);
        __m256 scale = load_scales(scales, side, super_scales, layout);
        for (int m = 0; m < n; m++)
            totals[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[m]),
                                        _mm256_mul_ps(scale, _mm256_set1_ps(x.scales[m])),
                                        totals[m]);
        if (!layout.has_mins)
            continue;
        __m256 min = load_scales(scales + scale_bytes(layout), side, super_mins, layout);
        for (int m = 0; m < n; m++)
            totals[m] = _mm256_fmadd_ps(min, _mm256_set1_ps(x.sums[m]), totals[m]);
    }
    for (int m = 0; m < n; m++)
        _mm256_storeu_ps(out + m * out_stride + 8 * side, totals[m]);
}

INLINE void multiply_panel(const uint8_t *panel, int64_t n_groups, const uint8_t *tile, float *out,
                           int64_t out_stride, packed_layout layout, int n)
{
    for (int side = 0; side < 2; side++)
        multiply_half_panel(panel, side, n_groups, tile, out, out_stride, layout, n);
}

#include "vectors.h"

INLINE vector load_f16(const uint16_t *from)
{
    return (vector)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
}

#include "generic_kernels.h"

END_TARGET
#endif

const kernel_set avx2_kernels = {
    .name = "avx2",
#if X86
    .is_supported = is_supported,
    .n_tile_sizes = N_TILE_SIZES,
    .tile_sizes = tile_sizes,
    .dot_products = dot_products,
    .multiply_floats = multiply_floats,
    .quantize_row = quantize_row,
    .quantization_error = quantization_error,
    .dequantize_row = dequantize_row,
    .rms_norm = rms_norm,
    .swiglu = swiglu,
    .add = add,
    .rotate = rotate,
    .store_rows = store_rows,
    .attend_to_split = attend_to_split,
    .merge_partials = merge_partials,
    .attend_block = attend_block,
#endif
};
