/* Matrix products: of packed matrices with quantized rows of activations, and of floats. */

#ifndef MATRIX_PRODUCT_H
#define MATRIX_PRODUCT_H

#include "kernel_set.h"

/* Modes of storing a product: as float32, as bfloat16, or added to float32; and for quantized rows
 * the sums of the products of each two of them, as float32. */
enum { STORE_FLOAT = 0, STORE_BF16 = 1, ACCUMULATE = 2, ADD_PAIRS = 3 };

/* Rows of the largest tile of a level. */
INLINE int max_tile(const kernel_set *kernels)
{
    return kernels->tile_sizes[kernels->n_tile_sizes - 1];
}

/* Index of the largest tile size of a level that is not larger than `n_left` rows. */
INLINE int next_tile(const kernel_set *kernels, int n_left)
{
    int index = kernels->n_tile_sizes - 1;
    while (kernels->tile_sizes[index] > n_left)
        index--;
    return index;
}

INLINE int next_tile_size(const kernel_set *kernels, int n_left)
{
    return kernels->tile_sizes[next_tile(kernels, n_left)];
}

/* Place of a layout among all of them. */
INLINE int layout_index(packed_layout layout)
{
    int index = 0;
#define FIND(...)                                                                                  \
    if (is_layout(layout, (packed_layout){__VA_ARGS__}))                                           \
        return index;                                                                              \
    index++;
    FOR_LAYOUTS(FIND)
#undef FIND
    return -1;
}

/* Products of a level with panels of a layout, one for each of its tile sizes. */
INLINE dot_product *const *dot_products_of(const kernel_set *kernels, packed_layout layout)
{
    return kernels->dot_products + layout_index(layout) * kernels->n_tile_sizes;
}

/* Quantize the `n` rows of a tile, x (n, n_columns) in bfloat16 or float32, to 8 bits. */
void quantize_tile(const kernel_set *kernels, const void *x, int is_bf16, int64_t n_columns,
                   int group, int n, uint8_t *tile);

/* Multiply the `panels` with `n_x` quantized rows, into y (n_x, n_rows), or (n_x / 2, n_rows). */
void multiply_panels(const kernel_set *kernels, const matrix *w, const uint8_t *quantized,
                     int n_x, void *y, int store_mode, range panels);

/* Columns of a result that multiply_gated_panels() computes together, for `n_x` rows; 0 if it is not
 * faster than products of one matrix after the other. */
int gated_width(const kernel_set *kernels, const matrix *gate, const matrix *up, int n_x);

/* Compute silu(gate * x) * (up * x), into y (n_x, n_rows), for the `panels` of both matrices and
 * `n_x` rows, quantized in the groups of each. The result is in float32; or, unless
 * `quantized_group` is 0, quantized in groups of so many columns: they divide gated_width() and n_rows,
 * and `panels` begin and end where groups do. */
void multiply_gated_panels(const kernel_set *kernels, const matrix *gate,
                           const uint8_t *gate_input, const matrix *up, const uint8_t *up_input,
                           int n_x, void *y, int quantized_group, range panels);

#endif
