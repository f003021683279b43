/* Blocks of queries, keys and values in float32, for prefill_attention.h. */

#ifndef PREFILL_FLOAT_H
#define PREFILL_FLOAT_H

#include "attention_vectors.h"
#include "transposition.h"

/* Convert rows (n_rows, width), `stride` floats apart, to operands in place: a no-op for floats. */
INLINE void convert_rows(float *rows, int64_t n_rows, int64_t width, int64_t stride)
{
    (void)rows, (void)n_rows, (void)width, (void)stride;
}

/* Load keys, transposed, and values of some rows, padded with zeros. */
INLINE void load_block(const kv_cache *cache, int64_t layer, int64_t head, range rows,
                       const prefill_buffers *b)
{
    const int64_t n = cache->head_dim, width = padded_head(cache);
    for (int64_t r = 0; r < KEY_BLOCK; r += LANES) {
        for (int64_t i = 0; i < LANES; i++) {
            const range left = {rows.start + r + i, rows.end};
            head_rows row = {0};
            if (left.start < left.end)
                row = rows_of_head(cache, layer, head, left, cache->kind);
            load_padded(row.keys, row.key_scales, n, width, cache->kind, b->rows + i * width);
            load_padded(row.values, row.value_scales, n, width, cache->kind,
                        b->values + (r + i) * width);
        }
        for (int64_t d = 0; d < width; d += LANES) {
            vector square[LANES];
            for (int i = 0; i < LANES; i++)
                square[i] = *(const vector *)(b->rows + i * width + d);
            transpose(square);
            for (int i = 0; i < LANES; i++)
                *(vector *)(b->keys + (d + i) * KEY_BLOCK + r) = square[i];
        }
    }
}

/* Compute a tile of c (rows, n) += a (rows, k) b (k, n): TILE_ROWS rows, `n_vectors` vectors. */
INLINE void multiply_tile(const float *a, int64_t a_stride, const float *b, int64_t b_stride,
                          float *c, int64_t c_stride, int64_t k, int n_vectors)
{
    vector sums[TILE_ROWS][N_SUMS / TILE_ROWS];
    for (int i = 0; i < TILE_ROWS; i++)
        for (int j = 0; j < n_vectors; j++)
            sums[i][j] = *(const vector *)(c + i * c_stride + j * LANES);
    for (int64_t l = 0; l < k; l++) {
        vector right[N_SUMS / TILE_ROWS];
        for (int j = 0; j < n_vectors; j++)
            right[j] = *(const vector *)(b + l * b_stride + j * LANES);
        for (int i = 0; i < TILE_ROWS; i++)
            for (int j = 0; j < n_vectors; j++)
                sums[i][j] += a[i * a_stride + l] * right[j];
    }
    for (int i = 0; i < TILE_ROWS; i++)
        for (int j = 0; j < n_vectors; j++)
            *(vector *)(c + i * c_stride + j * LANES) = sums[i][j];
}

/* Compute c (rows, n) += a (rows, k) b (k, n), for multiples of TILE_ROWS rows and PADDING
 * columns. */
INLINE void multiply_block(const float *a, int64_t a_stride, const float *b, int64_t b_stride,
                           float *c, int64_t c_stride, int64_t rows, int64_t k, int64_t n)
{
    const int n_vectors = N_SUMS / TILE_ROWS;
    for (int64_t i = 0; i < rows; i += TILE_ROWS) {
        int64_t j = 0;
        for (; j + n_vectors * LANES <= n; j += n_vectors * LANES)
            multiply_tile(a + i * a_stride, a_stride, b + j, b_stride, c + i * c_stride + j,
                          c_stride, k, n_vectors);
        for (; j < n; j += LANES)
            multiply_tile(a + i * a_stride, a_stride, b + j, b_stride, c + i * c_stride + j,
                          c_stride, k, 1);
    }
}

#include "prefill_attention.h"

static void attend_block(const kv_cache *cache, int64_t layer, const float *q, int64_t head,
                         range tokens, float *out, const prefill_buffers *buffers)
{
    attend_tokens(cache, layer, q, head, tokens, out, buffers);
}

#endif
