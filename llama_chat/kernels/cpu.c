/* Table of levels. */

#include "cpu.h"

/* LEVEL(name) for each NAME.c with its NAME_kernels; of those that a processor supports, the last
 * that is not slow is the best. */
#define FOR_LEVELS(LEVEL)                                                                          \
    LEVEL(portable)                                                                                \
    LEVEL(neon)                                                                                    \
    LEVEL(neon_dotprod)                                                                            \
    LEVEL(neon_i8mm)                                                                               \
    LEVEL(avx2)                                                                                    \
    LEVEL(avx2_vnni)                                                                               \
    LEVEL(avx512)                                                                                  \
    LEVEL(avx512_bf16)                                                                             \
    LEVEL(amx)

#define DECLARE(name) extern const kernel_set name##_kernels;
FOR_LEVELS(DECLARE)

#define ADDRESS(name) &name##_kernels,
static const kernel_set *const LEVELS[] = {FOR_LEVELS(ADDRESS)};

int n_levels(void) { return sizeof LEVELS / sizeof *LEVELS; }

int level_is_supported(int level)
{
    return LEVELS[level]->is_supported && LEVELS[level]->is_supported();
}

int level_is_slow(int level) { return LEVELS[level]->is_slow && LEVELS[level]->is_slow(); }

/* Copy the functions of `base` that `set` lacks. */
static void inherit(kernel_set *set, const kernel_set *base)
{
    if (!set->dot_products) {
        set->n_tile_sizes = base->n_tile_sizes;
        set->tile_sizes = base->tile_sizes;
        set->dot_products = base->dot_products;
        set->unpacked_products = base->unpacked_products;
    }
#define INHERIT(function)                                                                          \
    if (!set->function)                                                                            \
        set->function = base->function;
    INHERIT(multiply_floats)
    INHERIT(takes_bf16)
    INHERIT(round_row)
    INHERIT(multiply_bf16)
    INHERIT(bf16_scratch_bytes)
    INHERIT(bf16_rows)
    INHERIT(multiply_gated_bf16)
    INHERIT(quantize_row)
    INHERIT(quantization_error)
    INHERIT(dequantize_row)
    INHERIT(rms_norm)
    INHERIT(swiglu)
    INHERIT(block_maxima)
    INHERIT(sum_exponentials)
    INHERIT(rotate)
    INHERIT(store_rows)
    INHERIT(attend_to_split)
    INHERIT(merge_partials)
    INHERIT(attend_block)
}

kernel_set kernels_of(int level)
{
    kernel_set set = *LEVELS[level];
    for (const kernel_set *base = set.base; base; base = base->base)
        inherit(&set, base);
    return set;
}
