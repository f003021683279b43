/* Functions with a version for each instruction set ("level").
 *
 * A level is one file. It names the instructions to compile for, has hand-written code where
 * compilers generate slow code (mostly dot products), includes generic_kernels.h for the rest, and
 * defines a constant kernel_set, which is listed in cpu.c. Kernels do not use threads.
 */

#ifndef KERNEL_SET_H
#define KERNEL_SET_H

#include <math.h> /* here, before a level selects its instructions */

#include "activation_tile.h"
#include "attention.h"
#include "matrix.h"

/* Multiply a panel of `n_groups` blocks with a tile, into out (n, PANEL), whose rows are
 * `out_stride` floats apart. */
typedef void dot_product(const uint8_t *panel, int64_t n_groups, const uint8_t *tile, float *out,
                         int64_t out_stride);

/* Some columns of one panel or two that were unpacked to n_groups groups, UNPACKED_BYTES apart, to
 * be multiplied with a tile of the largest size, into out (n, n_panels, PANEL), or added to it; and
 * memory that is prefetched meanwhile, so many lines for each group. */
typedef struct {
    const uint8_t *groups, *tile;
    int64_t n_groups;
    float *out;
    int adds;
    const uint8_t *ahead;
    int lines_per_group;
} unpacked_tile;

/* Products of many tiles of the largest size with `n_panels` panels: a run of blocks that begins
 * with a super-block, if there are any, is unpacked once for all tiles, see panel_blocks.h. */
typedef struct {
    int n_panels;
    void (*unpack)(const uint8_t *blocks, int64_t n_groups, uint8_t *to);
    void (*multiply)(const unpacked_tile *operands);
} unpacked_product;

struct kernel_set {
    const char *name;
    int (*is_supported)(void); /* NULL on other architectures */
    int (*is_slow)(void);      /* true where `base` is faster; NULL: nowhere */
    const kernel_set *base;    /* provides the functions that are NULL below; or NULL */

    /* Matrix products: the sizes of tiles, ascending, with 1 and 2 among them and the others even,
     * dot_products (layouts, sizes), and unpacked_products (layouts), or NULL; see
     * dot_products.h. */
    int n_tile_sizes;
    const int *tile_sizes;
    dot_product *const *dot_products;
    const unpacked_product *unpacked_products;

    /* Multiply some rows of a matrix of floats with x (n_x, n_columns), into y (n_x, n_rows). */
    void (*multiply_floats)(const matrix *w, range rows, const float *x, int n_x, float *y,
                            int store_mode);

    /* The same for many rows of activations, rounded to bfloat16: of matrices for which that is
     * faster. Rows begin with a panel. Row `m` of x is written by round_row(), and memory for x is
     * that of a multiple of MAX_TILE rows. `scratch` is the thread's own. NULL: for none. It is
     * fastest with `bf16_rows` of weights or more, for which rows of x are read once. */
    int (*takes_bf16)(const matrix *w);
    void (*round_row)(const float *x, int64_t n_columns, int m, uint16_t *to);
    void (*multiply_bf16)(const matrix *w, range rows, const uint16_t *x, int n_x, float *y,
                          int store_mode, void *scratch);
    int64_t bf16_scratch_bytes, bf16_rows;

    /* The same for two matrices of one type that both are such: silu(gate * x) * (up * x), into y
     * (n_x, n_rows), as round_row() writes rows for another such matrix. NULL: for none. */
    void (*multiply_gated_bf16)(const matrix *gate, const matrix *up, range rows,
                                const uint16_t *x, int n_x, uint16_t *y, void *scratch);

    /* Quantize a row, x (n_columns) in bfloat16 or float32, as row `m` of a tile of `n` rows. */
    void (*quantize_row)(const void *x, int is_bf16, int64_t n_columns, int group, int n, int m,
                         uint8_t *tile);

    /* Compute the error of quantization: x minus the row that quantize_row() makes of it. */
    void (*quantization_error)(const float *x, int64_t n_columns, int group, float *error);

    /* Write one row of weights as bfloat16 or float32. */
    void (*dequantize_row)(const matrix *w, int64_t row, void *to, int is_bf16);

    /* Operations between the matrix products. */
    void (*rms_norm)(const float *x, const float *weight, int64_t n, float eps, float *to);
    void (*swiglu)(float *gate, const float *up, int64_t n);

    /* Find the largest of each of the logit_blocks() of n logits; and add up
     * exp((x - max) * factor) for up to SUMMED_LOGITS. */
    void (*block_maxima)(const float *x, int64_t n, float *maxima);
    float (*sum_exponentials)(const float *x, int64_t n, float max, float factor);

    /* Rotate the `columns` of x (n_new, width) by the angles of their tokens, times `scale`. */
    void (*rotate)(const kv_cache *cache, float *x, int64_t width, range columns, float scale);

    /* Store the `columns` of x (n_new, n_kv_heads * head_dim) in the last segment's `buffers`. */
    void (*store_rows)(const kv_cache *cache, void *const *buffers, float *const *scales,
                       int64_t layer, const float *x, range columns);

    /* Attend with all queries of one head of keys to the rows of one split. `q` and `partials`
     * point to those of the first sequence; those of the others follow. */
    void (*attend_to_split)(const split_item *item, int64_t layer, const float *q,
                            const decode_buffers *buffers, float *partials);

    /* Merge one query's partial results, `stride` floats apart, into to (n). */
    void (*merge_partials)(const float *partials, int64_t n_partials, int64_t stride, int64_t n,
                           float *to);

    /* Attend causally with all queries of one head of keys of the `tokens`. */
    void (*attend_block)(const kv_cache *cache, int64_t layer, const float *q, int64_t head,
                         range tokens, float *out, const prefill_buffers *buffers);
};

#endif
