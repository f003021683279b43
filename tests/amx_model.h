/* A model of the tiles of AMX in plain C, which takes the place of the intrinsics where a processor
 * has none. What a processor would refuse aborts the program. */

#ifndef AMX_MODEL_H
#define AMX_MODEL_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "numbers.h"

enum { MODEL_TILES = 8, MODEL_ROWS = 16, MODEL_ROW_BYTES = 64 };

typedef struct {
    int n_rows, row_bytes;
    uint8_t rows[MODEL_ROWS][MODEL_ROW_BYTES];
} model_tile;

static _Thread_local struct {
    int is_configured;
    model_tile tiles[MODEL_TILES];
} model;

static void model_check(int holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "tiles: %s\n", what);
    abort();
}

/* Return a tile that is in use. */
static model_tile *model_tile_of(int tile)
{
    model_check(model.is_configured, "not configured");
    model_check(tile >= 0 && tile < MODEL_TILES, "no such tile");
    model_tile *t = model.tiles + tile;
    model_check(t->n_rows && t->row_bytes, "a tile without rows");
    return t;
}

/* Configure palette 1: bytes of the rows of each tile, then their numbers. */
static void model_configure(const void *config)
{
    const uint8_t *bytes = config, zeros[14] = {0};
    model_check(!model.is_configured, "configured, and not released");
    model_check(bytes[0] == 1 && bytes[1] == 0, "another palette, or a row to start at");
    model_check(!memcmp(bytes + 2, zeros, 14), "reserved bytes of the configuration");
    memset(&model, 0, sizeof model);
    model.is_configured = 1;
    for (int i = 0; i < 16; i++) {
        const int row_bytes = bytes[16 + 2 * i] | bytes[17 + 2 * i] << 8, n_rows = bytes[48 + i];
        model_check(row_bytes <= MODEL_ROW_BYTES && n_rows <= MODEL_ROWS, "a tile too large");
        model_check(!row_bytes == !n_rows, "a tile with rows or bytes alone");
        model_check(i < MODEL_TILES || !n_rows, "too many tiles");
        if (i < MODEL_TILES)
            model.tiles[i].n_rows = n_rows, model.tiles[i].row_bytes = row_bytes;
    }
}

static void model_release(void) { memset(&model, 0, sizeof model); }

static void model_zero(int tile)
{
    model_tile *t = model_tile_of(tile);
    memset(t->rows, 0, sizeof t->rows);
}

/* Rows of memory are `stride` bytes apart. The rest of a tile becomes zeros. */
static void model_load(int tile, const void *from, int64_t stride)
{
    model_tile *t = model_tile_of(tile);
    memset(t->rows, 0, sizeof t->rows);
    for (int r = 0; r < t->n_rows; r++)
        memcpy(t->rows[r], (const char *)from + r * stride, (size_t)t->row_bytes);
}

static void model_store(int tile, void *to, int64_t stride)
{
    const model_tile *t = model_tile_of(tile);
    for (int r = 0; r < t->n_rows; r++)
        memcpy((char *)to + r * stride, t->rows[r], (size_t)t->row_bytes);
}

/* Check the shapes of a product, c += a b, of elements of 4 bytes. */
static void model_check_product(int c, int a, int b)
{
    const model_tile *sums = model_tile_of(c), *left = model_tile_of(a), *right = model_tile_of(b);
    model_check(c != a && c != b && a != b, "a product of a tile with itself");
    model_check(left->row_bytes % 4 == 0 && right->row_bytes % 4 == 0, "a part of an element");
    model_check(sums->n_rows == left->n_rows, "rows of sums and left operand");
    model_check(sums->row_bytes == right->row_bytes, "columns of sums and right operand");
    model_check(left->row_bytes == 4 * right->n_rows, "columns of left, rows of right operand");
}

/* Add the products of pairs in bfloat16. */
static void model_add_bf16_products(int c, int a, int b)
{
    model_check_product(c, a, b);
    model_tile *sums = model.tiles + c, *left = model.tiles + a, *right = model.tiles + b;
    for (int m = 0; m < left->n_rows; m++)
        for (int n = 0; n < right->row_bytes / 4; n++) {
            float sum;
            memcpy(&sum, sums->rows[m] + 4 * n, 4);
            for (int k = 0; k < left->row_bytes / 2; k++) {
                uint16_t x, y;
                memcpy(&x, left->rows[m] + 2 * k, 2);
                memcpy(&y, right->rows[k / 2] + 4 * n + k % 2 * 2, 2);
                sum += bf16_to_float(x) * bf16_to_float(y);
            }
            memcpy(sums->rows[m] + 4 * n, &sum, 4);
        }
}

#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig model_configure
#define _tile_release model_release
#define _tile_zero model_zero
#define _tile_loadd model_load
#define _tile_stream_loadd model_load
#define _tile_stored model_store
#define _tile_dpbf16ps model_add_bf16_products

#endif
