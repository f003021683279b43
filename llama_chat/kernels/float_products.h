/* Products of float matrices with rows of activations, for any instruction set.
 *
 * A few rows of activations, which are exact, are multiplied in tiles: a few rows of weights times
 * a few rows of activations, whose sums stay in registers. Each lane sums every LANES-th column, in
 * order, and the lanes are added at the end, whatever the size of a tile: results do not depend on
 * the number of rows. Nor do those of many rows, whose order is that of float_panels.h.
 *
 * Before including this, the level defines load_f16(const uint16_t *), which loads LANES numbers.
 */

#ifndef FLOAT_PRODUCTS_H
#define FLOAT_PRODUCTS_H

#include "float_panels.h"

/* Rows of weights and of activations in a tile: their sums and operands fill the registers. */
enum { TILE_W = REGISTERS == 32 ? 4 : 2, TILE_X = 6 };

/* Activations that leave half of L1 to weights. */
enum { CACHED_FLOATS = 4096 };

/* Prefetch distance of weights in bytes. */
enum { PREFETCH_BYTES = 1024 };

/* Multiply a tile of `n` columns, and store (n_x, n_w) or add to it. Several rows of weights are
 * requested `ahead` columns before their use; columns behind their ends are those of the next
 * tile. */
INLINE void multiply_float_tile(const uint8_t *w, const float *x, int64_t n, int type, int n_w,
                                int n_x, float *y, int64_t y_stride, int adds, int64_t ahead)
{
    const int64_t w_bytes = n * float_bytes(type);
    vector sums[TILE_W][TILE_X];
    for (int r = 0; r < n_w; r++)
        for (int m = 0; m < n_x; m++)
            sums[r][m] = (vector){0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        const int64_t wanted = i + ahead < n ? i + ahead : i + ahead + (n_w - 1) * n;
        vector weights[TILE_W];
        for (int r = 0; r < n_w; r++) {
            if (n_w > 1)
                __builtin_prefetch(w + r * w_bytes + wanted * float_bytes(type));
            weights[r] = load_weights(w + r * w_bytes, i, type);
        }
        for (int m = 0; m < n_x; m++) {
            const vector row = *(const vector *)(x + m * n + i);
            for (int r = 0; r < n_w; r++)
                sums[r][m] += weights[r] * row;
        }
    }
    for (int r = 0; r < n_w && i < n; r++) { /* the last numbers, padded with zeros */
        const vector weights = load_last_weights(w + r * w_bytes, i, type, n - i);
        for (int m = 0; m < n_x; m++) {
            vector row = {0};
            memcpy(&row, x + m * n + i, (size_t)(n - i) * sizeof(float));
            sums[r][m] += weights * row;
        }
    }
    for (int m = 0; m < n_x; m++)
        for (int r = 0; r < n_w; r++) {
            const float sum = horizontal_sum(sums[r][m]);
            y[m * y_stride + r] = adds ? y[m * y_stride + r] + sum : sum;
        }
}

/* Multiply a few rows of weights with all rows of activations, tile by tile. A single row of weights
 * is left over, or there is one row of activations: tiles of one are enough. */
INLINE void multiply_float_rows(const uint8_t *w, const float *x, int64_t n, int type, int n_w,
                                int n_x, float *y, int64_t y_stride, int adds, int64_t ahead)
{
#define TILE(size)                                                                                 \
    multiply_float_tile(w, x + m * n, n, type, n_w, size, y + m * y_stride, y_stride, adds, ahead)
    int m = 0;
    for (; n_w == 1 && m < n_x; m++)
        TILE(1);
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

/* Multiply rows of activations with rows of weights, each read from front to back: memory is the
 * limit for a few.
 *
 * AMD's processors read a single row fastest with their hardware prefetcher alone. For wide rows it
 * pays to load the activations once for several rows, while the rows of the next tile are
 * prefetched. The hardware prefetcher of Intel's processors starts again at each page; prefetching
 * within a row, and several rows at once, hide that. */
INLINE void multiply_by_rows(const matrix *w, range rows, const float *x, int n_x, float *y,
                             int adds, int type)
{
    const int64_t n = w->n_columns;
    const int64_t ahead = is_amd() ? n : min(n, PREFETCH_BYTES / float_bytes(type));
    const int by_row = is_amd() && n_x == 1 && n <= CACHED_FLOATS;
    int64_t r = rows.start;
#define ROWS(n_w)                                                                                  \
    multiply_float_rows(w->data + r * n * float_bytes(type), x, n, type, n_w, n_x, y + r,          \
                        w->n_rows, adds, ahead)
    if (!by_row)
        for (; r + TILE_W <= rows.end; r += TILE_W)
            ROWS(TILE_W);
    for (; r < rows.end; r++)
        ROWS(1);
#undef ROWS
}

INLINE void multiply_floats_of(const matrix *w, range rows, const float *x, int n_x, float *y,
                               int adds, int type)
{
    int64_t r = rows.start;
    if (n_x > MAX_EXACT_BATCH) {
        for (; r + FLOAT_PANEL <= rows.end; r += FLOAT_PANEL)
            multiply_by_panel(w, r, 2, x, n_x, y, adds, type);
        for (; r + LANES <= rows.end; r += LANES)
            multiply_by_panel(w, r, 1, x, n_x, y, adds, type);
    }
    multiply_by_rows(w, (range){r, rows.end}, x, n_x, y, adds, type);
}

static void multiply_floats(const matrix *w, range rows, const float *x, int n_x, float *y,
                            int store_mode)
{
    const int adds = store_mode == ACCUMULATE;
    if (w->type == WEIGHT_F32)
        multiply_floats_of(w, rows, x, n_x, y, adds, WEIGHT_F32);
    else if (w->type == WEIGHT_BF16)
        multiply_floats_of(w, rows, x, n_x, y, adds, WEIGHT_BF16);
    else
        multiply_floats_of(w, rows, x, n_x, y, adds, WEIGHT_F16);
}

#endif
