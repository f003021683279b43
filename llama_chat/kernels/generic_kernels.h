/* Kernels for which compilers generate good code, compiled for the instructions of the level that
 * includes this.
 *
 * Before including this, the level defines multiply_panel() and FOR_TILE_SIZES (see
 * dot_products.h), LANES and REGISTERS (see vectors.h), and load_f16() (see float_products.h).
 */

#ifndef GENERIC_KERNELS_H
#define GENERIC_KERNELS_H

#include "activations.h"
#include "decode_attention.h"
#include "dequantization.h"
#include "dot_products.h"
#include "float_products.h"
#include "kv_cache_store.h"
#include "logit_sums.h"
#include "prefill_float.h"
#include "row_quantization.h"

/* The entries of a kernel_set for these; a level may have a quantize_row() of its own. */
#define GENERIC_KERNELS                                                                            \
    DOT_PRODUCTS,                                                                                  \
    .multiply_floats = multiply_floats,                                                            \
    .quantization_error = quantization_error,                                                      \
    .dequantize_row = dequantize_row,                                                              \
    .rms_norm = rms_norm,                                                                          \
    .swiglu = swiglu,                                                                              \
    .block_maxima = block_maxima,                                                                  \
    .sum_exponentials = sum_exponentials,                                                          \
    .rotate = rotate,                                                                              \
    .store_rows = store_rows,                                                                      \
    .attend_to_split = attend_to_split,                                                            \
    .merge_partials = merge_partials,                                                              \
    .attend_block = attend_block

#endif
