/* Attention of prompts to a cache in bfloat16, for amx.c. */

#ifndef AMX_ATTENTION_H
#define AMX_ATTENTION_H

#define QUERY_STEP TILE
#define KEY_STEP TILE_COLUMNS

/* Compute one or two tiles of rows of c += a b, times two of columns; see prefill_bf16.h. */
INLINE void multiply_pair_tiles(const uint32_t *a, int64_t a_stride, int n_left, const uint32_t *b,
                                int64_t b_stride, float *c, int64_t c_stride, int64_t n_pairs)
{
    const int64_t a_bytes = 4 * a_stride, b_bytes = 4 * b_stride, c_bytes = 4 * c_stride;
    const int n_right = 2;
#define SUMS_AT(a, b) (c + ((a) - 4) * TILE * c_stride + ((b) - 6) * TILE)
#define LOAD(tile, a, b) LOAD_TILE(tile, SUMS_AT(a, b), c_bytes)
#define STORE(tile, a, b) _tile_stored(tile, SUMS_AT(a, b), c_bytes)
    FOR_SUMS(LOAD);
    for (int64_t i = 0; i < n_pairs; i += TILE) {
        LOAD_TILE(4, a + i, a_bytes);
        LOAD_TILE(6, b + i * b_stride, b_bytes);
        LOAD_TILE(7, b + i * b_stride + TILE, b_bytes);
        if (n_left > 1)
            LOAD_TILE(5, a + TILE * a_stride + i, a_bytes);
        FOR_SUMS(_tile_dpbf16ps);
    }
    FOR_SUMS(STORE);
#undef SUMS_AT
#undef LOAD
#undef STORE
}

INLINE void multiply_pairs(const uint32_t *a, int64_t a_stride, const uint32_t *b, int64_t b_stride,
                           float *c, int64_t c_stride, int64_t rows, int64_t n_pairs, int64_t n)
{
    for (int64_t j = 0; j < n; j += 2 * TILE) {
        int64_t i = 0;
        for (; i + 2 * TILE <= rows; i += 2 * TILE)
            multiply_pair_tiles(a + i * a_stride, a_stride, 2, b + j, b_stride,
                                c + i * c_stride + j, c_stride, n_pairs);
        if (i < rows)
            multiply_pair_tiles(a + i * a_stride, a_stride, 1, b + j, b_stride,
                                c + i * c_stride + j, c_stride, n_pairs);
    }
}

#include "prefill_bf16.h"

static void attend_block(const kv_cache *cache, int64_t layer, const float *q, int64_t head,
                         range tokens, float *out, const prefill_buffers *buffers)
{
    if (cache->kind != BFLOAT16 || cache->head_dim % TILE_COLUMNS) {
        avx512_kernels.attend_block(cache, layer, q, head, tokens, out, buffers);
        return;
    }
    begin_tiles();
    attend_tokens(cache, layer, q, head, tokens, out, buffers);
    _tile_release();
}

#endif
