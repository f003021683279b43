/* The kernels that compilers make good code of by themselves, for the instructions that are being
 * compiled for where this is included.
 *
 * The level defines before: multiply_panel() and FOR_TILE_SIZES (see dot_products.h), and LANES
 * (see attention_vectors.h).
 */

#ifndef GENERIC_KERNELS_H
#define GENERIC_KERNELS_H

#include "activations.h"
#include "decode_attention.h"
#include "dequantization.h"
#include "dot_products.h"
#include "kv_cache_store.h"
#include "prefill_float.h"
#include "row_quantization.h"

#endif
