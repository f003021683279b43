/* Products of float matrices with many rows of activations, for any instruction set.
 *
 * Some columns of two vectors of rows of weights are widened and transposed to a panel: for each
 * column, its weights in all of these rows. All rows of activations are multiplied with it, in
 * tiles whose sums stay in registers: each activation is loaded into all lanes, and each lane sums
 * the products of one row, in the order of its columns.
 *
 * Before including this, the level includes float_weights.h.
 */

#ifndef FLOAT_PANELS_H
#define FLOAT_PANELS_H

#include "float_weights.h"
#include "matrix_product.h"
#include "transposition.h"

/* Rows of weights of a panel, and columns, so that it stays in L1; and rows
 * of activations of a tile. */
enum { FLOAT_PANEL = 2 * LANES, PANEL_COLUMNS = 256, PANEL_X = REGISTERS == 32 ? 12 : 6 };

/* Write `columns` of LANES rows, of `n_columns`, to their part of a panel; and request those of the
 * next panel: the next columns, or the first of the rows below. */
INLINE void transpose_rows(const uint8_t *rows, int64_t n_columns, range columns, int type,
                           float *panel)
{
    const int64_t row_bytes = n_columns * float_bytes(type);
    for (int64_t i = columns.start; i < columns.end; i += LANES) {
        const int n = (int)min(LANES, columns.end - i);
        const int64_t next = i + PANEL_COLUMNS < n_columns
                                 ? i + PANEL_COLUMNS
                                 : i - columns.start + FLOAT_PANEL * n_columns;
        vector square[LANES];
        for (int r = 0; r < LANES; r++) {
            const uint8_t *row = rows + r * row_bytes;
            __builtin_prefetch(row + next * float_bytes(type));
            square[r] = n == LANES ? load_weights(row, i, type)
                                   : load_last_weights(row, i, type, n);
        }
        transpose(square);
        for (int k = 0; k < n; k++, panel += FLOAT_PANEL)
            *(vector *)panel = square[k];
    }
}

/* Multiply `n_columns` of a panel's rows with a tile, and store (n_x, n_vectors * LANES) or add to
 * it. */
INLINE void multiply_panel_tile(const float *panel, int64_t n_columns, const float *x,
                                int64_t x_stride, int n_vectors, int n_x, float *y,
                                int64_t y_stride, int adds)
{
    vector sums[PANEL_X][2];
    for (int m = 0; m < n_x; m++)
        for (int v = 0; v < n_vectors; v++)
            sums[m][v] = (vector){0};
    for (int64_t k = 0; k < n_columns; k++, panel += FLOAT_PANEL)
        for (int m = 0; m < n_x; m++) {
            /* In all lanes: adding zero instead would take an instruction, for x may be -0. */
            const vector activation = x[m * x_stride + k] - (vector){0};
            for (int v = 0; v < n_vectors; v++)
                sums[m][v] += activation * *(const vector *)(panel + v * LANES);
        }
    for (int m = 0; m < n_x; m++)
        for (int v = 0; v < n_vectors; v++) {
            vector *to = (vector *)(y + m * y_stride + v * LANES);
            if (adds)
                sums[m][v] += *to;
            *to = sums[m][v];
        }
}

/* Multiply a panel with all rows of activations, tile by tile. */
INLINE void multiply_panel_tiles(const float *panel, int64_t n_columns, const float *x,
                                 int64_t x_stride, int n_vectors, int n_x, float *y,
                                 int64_t y_stride, int adds)
{
    int m = 0;
#define TILES(n)                                                                                   \
    for (; m + (n) <= n_x; m += (n))                                                               \
    multiply_panel_tile(panel, n_columns, x + m * x_stride, x_stride, n_vectors, n,                \
                        y + m * y_stride, y_stride, adds)
    TILES(PANEL_X);
    TILES(4);
    TILES(2);
    TILES(1);
#undef TILES
}

/* Multiply a panel of weights of any type, which are floats in it. */
static NOINLINE void multiply_float_panel(const float *panel, int64_t n_columns, const float *x,
                                          int64_t x_stride, int n_vectors, int n_x, float *y,
                                          int64_t y_stride, int adds)
{
    if (n_vectors == 2)
        multiply_panel_tiles(panel, n_columns, x, x_stride, 2, n_x, y, y_stride, adds);
    else
        multiply_panel_tiles(panel, n_columns, x, x_stride, 1, n_x, y, y_stride, adds);
}

/* Multiply `n_vectors` * LANES rows from `row` on with all rows of activations. */
INLINE void multiply_by_panel(const matrix *w, int64_t row, int n_vectors, const float *x, int n_x,
                              float *y, int adds, int type)
{
    const int64_t row_bytes = w->n_columns * float_bytes(type);
    _Alignas(64) float panel[PANEL_COLUMNS * FLOAT_PANEL];
    for (int64_t at = 0; at < w->n_columns; at += PANEL_COLUMNS) {
        const range columns = {at, min(at + PANEL_COLUMNS, w->n_columns)};
        for (int v = 0; v < n_vectors; v++)
            transpose_rows(w->data + (row + v * LANES) * row_bytes, w->n_columns, columns, type,
                           panel + v * LANES);
        multiply_float_panel(panel, columns.end - at, x + at, w->n_columns, n_vectors, n_x, y + row,
                             w->n_rows, adds || at > 0);
    }
}

#endif
