/* Products of float matrices with rows of activations, for any instruction set.
 *
 * A tile is a few rows of weights times a few rows of activations: each loaded vector is used for
 * several sums, which stay in registers. Weights are widened in registers, once per tile. Every
 * product is summed in the same order whatever the size of its tile, so that results do not depend
 * on the number of rows.
 *
 * Before including this, the level defines load_f16(const uint16_t *), which loads LANES numbers.
 */

#ifndef FLOAT_PRODUCTS_H
#define FLOAT_PRODUCTS_H

#include "matrix_product.h"
#include "vectors.h"

/* Rows of weights and of activations in a tile: their sums and operands fill the registers. */
enum { TILE_W = REGISTERS == 32 ? 4 : 2, TILE_X = 6 };

/* Activations that leave half of the first cache of a core to weights. */
enum { CACHED_FLOATS = 4096 };

INLINE vector load_weights(const uint8_t *row, int64_t at, int type)
{
    row += at * float_bytes(type);
    if (type == WEIGHT_F32)
        return *(const vector *)row;
    return type == WEIGHT_BF16 ? load_bf16((const uint16_t *)row) : load_f16((const uint16_t *)row);
}

/* Multiply `columns` of a tile, and store (n_x, n_w) or add to it. */
INLINE void multiply_float_tile(const uint8_t *w, int64_t w_bytes, const float *x, int64_t x_stride,
                                range columns, int type, int n_w, int n_x, float *y,
                                int64_t y_stride, int adds)
{
    vector sums[TILE_W][TILE_X];
    for (int r = 0; r < n_w; r++)
        for (int m = 0; m < n_x; m++)
            sums[r][m] = (vector){0};
    int64_t i = columns.start;
    for (; i + LANES <= columns.end; i += LANES) {
        vector weights[TILE_W];
        for (int r = 0; r < n_w; r++) {
            /* The next tile: several rows are as many short streams. The processor reads a single
             * one ahead by itself, and is only held up by further requests. */
            if (n_x > 1 || n_w > 1)
                __builtin_prefetch(w + (r + n_w) * w_bytes + i * float_bytes(type));
            weights[r] = load_weights(w + r * w_bytes, i, type);
        }
        for (int m = 0; m < n_x; m++) {
            const vector row = *(const vector *)(x + m * x_stride + i);
            for (int r = 0; r < n_w; r++)
                sums[r][m] += weights[r] * row;
        }
    }
    if (i < columns.end) { /* the last numbers, padded with zeros */
        const size_t n = (size_t)(columns.end - i);
        for (int r = 0; r < n_w; r++) {
            uint8_t padded[4 * LANES] = {0};
            memcpy(padded, w + r * w_bytes + i * float_bytes(type), n * (size_t)float_bytes(type));
            const vector weights = load_weights(padded, 0, type);
            for (int m = 0; m < n_x; m++) {
                vector row = {0};
                memcpy(&row, x + m * x_stride + i, n * sizeof(float));
                sums[r][m] += weights * row;
            }
        }
    }
    for (int m = 0; m < n_x; m++)
        for (int r = 0; r < n_w; r++) {
            const float sum = horizontal_sum(sums[r][m]);
            y[m * y_stride + r] = adds ? y[m * y_stride + r] + sum : sum;
        }
}

/* Multiply a few rows of weights with all rows of activations, tile by tile. */
INLINE void multiply_float_rows(const uint8_t *w, int64_t w_bytes, const float *x, int64_t x_stride,
                                range columns, int type, int n_w, int n_x, float *y,
                                int64_t y_stride, int adds)
{
#define TILE(n)                                                                                    \
    multiply_float_tile(w, w_bytes, x + m * x_stride, x_stride, columns, type, n_w, n,             \
                        y + m * y_stride, y_stride, adds)
    int m = 0;
    for (; m + TILE_X <= n_x; m += TILE_X)
        TILE(TILE_X);
    switch (n_x - m) {
    case 1: TILE(1); break;
    case 2: TILE(2); break;
    case 3: TILE(3); break;
    case 4: TILE(4); break;
    case 5: TILE(5); break;
    }
#undef TILE
}

INLINE void multiply_floats_of(const matrix *w, range rows, const float *x, int n_x, float *y,
                               int store_mode, int type)
{
    const int64_t w_bytes = w->n_columns * float_bytes(type);
    const int is_small = n_x <= MAX_EXACT_BATCH;
    /* Small batches read whole rows of weights from front to back. */
    const int64_t chunk = is_small ? w->n_columns : FLOAT_CHUNK;
    const int64_t step = is_small ? TILE_W : rows.end - rows.start;
    const int block = is_small ? n_x : FLOAT_BLOCK;
    /* A row of activations that stays in the first cache leaves memory as the limit, which is read
     * fastest as a single stream; a wider one is worth loading once for several rows of weights. */
    const int by_row = n_x == 1 && w->n_columns <= CACHED_FLOATS;
    for (int m = 0; m < n_x; m += block) {
        const int n = n_x - m < block ? n_x - m : block;
        for (int64_t first = rows.start; first < rows.end; first += step)
            for (int64_t at = 0; at < w->n_columns; at += chunk) {
                const range columns = {at, min(at + chunk, w->n_columns)};
                const int adds = store_mode == ACCUMULATE || at > 0;
                const int64_t end = min(first + step, rows.end);
                int64_t r = first;
#define ROWS(n_w)                                                                                  \
    multiply_float_rows(w->data + r * w_bytes, w_bytes, x + m * w->n_columns, w->n_columns,        \
                        columns, type, n_w, n, y + m * w->n_rows + r, w->n_rows, adds)
                if (!by_row)
                    for (; r + TILE_W <= end; r += TILE_W)
                        ROWS(TILE_W);
                for (; r < end; r++)
                    ROWS(1);
#undef ROWS
            }
    }
}

static void multiply_floats(const matrix *w, range rows, const float *x, int n_x, float *y,
                            int store_mode)
{
    if (w->type == WEIGHT_F32)
        multiply_floats_of(w, rows, x, n_x, y, store_mode, WEIGHT_F32);
    else if (w->type == WEIGHT_BF16)
        multiply_floats_of(w, rows, x, n_x, y, store_mode, WEIGHT_BF16);
    else
        multiply_floats_of(w, rows, x, n_x, y, store_mode, WEIGHT_F16);
}

#endif
