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

#endif
