/* x86-64 processors with AVX-512 and products of bfloat16 (Intel since Cooper Lake, AMD since
 * Zen 4): twice as many per instruction as of floats, for prefill with weights or a cache in
 * bfloat16. */

#include "matrix_product.h"

/* GCC supports these since version 10. */
#if X86 && (defined(__clang__) || __GNUC__ >= 10)
#define HAS_AVX512_BF16 1
#else
#define HAS_AVX512_BF16 0
#endif

#if HAS_AVX512_BF16
#include <immintrin.h>

extern const kernel_set avx512_kernels;

static int is_supported(void)
{
    return avx512_kernels.is_supported() && __builtin_cpu_supports("avx512bf16");
}

/* Measured on Emerald Rapids, whose cores are those of Sapphire Rapids: a product of bfloat16 takes
 * four times as long as one of floats, for twice the numbers. */
static int is_slow(void) { return is_intel() && !__builtin_cpu_is("cooperlake"); }

BEGIN_TARGET("avx512f,avx512bw,avx512vl,avx512bf16,avx2,fma,f16c")

enum { N_VECTORS = 4 }; /* of PADDING floats each, in a tile */

INLINE void multiply_tile(const uint32_t *a, int64_t a_stride, const uint32_t *b, int64_t b_stride,
                          float *c, int64_t c_stride, int64_t n_pairs, int n_vectors)
{
    __m512 sums[TILE_ROWS][N_VECTORS];
    for (int i = 0; i < TILE_ROWS; i++)
        for (int j = 0; j < n_vectors; j++)
            sums[i][j] = _mm512_loadu_ps(c + i * c_stride + j * PADDING);
    for (int64_t l = 0; l < n_pairs; l++) {
        __m512i right[N_VECTORS];
        for (int j = 0; j < n_vectors; j++)
            right[j] = _mm512_loadu_si512(b + l * b_stride + j * PADDING);
        for (int i = 0; i < TILE_ROWS; i++) {
            __m512i left = _mm512_set1_epi32((int32_t)a[i * a_stride + l]);
            for (int j = 0; j < n_vectors; j++)
                sums[i][j] = _mm512_dpbf16_ps(sums[i][j], (__m512bh)left, (__m512bh)right[j]);
        }
    }
    for (int i = 0; i < TILE_ROWS; i++)
        for (int j = 0; j < n_vectors; j++)
            _mm512_storeu_ps(c + i * c_stride + j * PADDING, sums[i][j]);
}

INLINE void multiply_pairs(const uint32_t *a, int64_t a_stride, const uint32_t *b, int64_t b_stride,
                           float *c, int64_t c_stride, int64_t rows, int64_t n_pairs, int64_t n)
{
    for (int64_t i = 0; i < rows; i += TILE_ROWS) {
        const uint32_t *left = a + i * a_stride;
        int64_t j = 0;
        for (; j + N_VECTORS * PADDING <= n; j += N_VECTORS * PADDING)
            multiply_tile(left, a_stride, b + j, b_stride, c + i * c_stride + j, c_stride, n_pairs,
                          N_VECTORS);
        for (; j < n; j += PADDING)
            multiply_tile(left, a_stride, b + j, b_stride, c + i * c_stride + j, c_stride, n_pairs,
                          1);
    }
}

#include "prefill_bf16.h"

static void attend_block(const kv_cache *cache, int64_t layer, const float *q, int64_t head,
                         range tokens, float *out, const prefill_buffers *buffers)
{
    if (cache->kind == BFLOAT16)
        attend_tokens(cache, layer, q, head, tokens, out, buffers);
    else
        avx512_kernels.attend_block(cache, layer, q, head, tokens, out, buffers);
}

/* ---- weights in bfloat16 -------------------------------------------------------------------- */

/* Numbers in a vector; rows of weights and of activations in a tile. */
enum { LANES = 32, TILE_W = 4, TILE_X = 6 };

/* Columns that are summed at a time, and rows of activations that are multiplied with all weights
 * before the next: so many stay in L2. */
enum { CHUNK_COLUMNS = 4096, BLOCK_X = 60 };

/* Load `n` numbers, or LANES if there are more, padded with zeros. */
INLINE __m512bh load_numbers(const uint16_t *from, int64_t n)
{
    const __mmask32 all = 0xffffffff;
    return (__m512bh)(n < LANES ? _mm512_maskz_loadu_epi16(all >> (LANES - n), from)
                                : _mm512_loadu_si512(from));
}

/* Add the products of `n` columns, or of LANES if there are more. */
INLINE void add_bf16_products(const uint16_t *w, const uint16_t *x, int64_t n_columns, int64_t n,
                              int n_w, int n_x, __m512 sums[TILE_X][TILE_W])
{
    __m512bh weights[TILE_W];
    for (int r = 0; r < n_w; r++)
        weights[r] = load_numbers(w + r * n_columns, n);
    for (int m = 0; m < n_x; m++) {
        const __m512bh row = load_numbers(x + m * n_columns, n);
        for (int r = 0; r < n_w; r++)
            sums[m][r] = _mm512_dpbf16_ps(sums[m][r], weights[r], row);
    }
}

/* Multiply `columns` of a tile, and store (n_x, n_w) or add to it. */
INLINE void multiply_bf16_tile(const uint16_t *w, const uint16_t *x, int64_t n_columns,
                               range columns, int n_w, int n_x, float *y, int64_t y_stride, int adds)
{
    __m512 sums[TILE_X][TILE_W];
    for (int m = 0; m < n_x; m++)
        for (int r = 0; r < n_w; r++)
            sums[m][r] = _mm512_setzero_ps();
    int64_t i = columns.start;
    for (; i + LANES <= columns.end; i += LANES)
        add_bf16_products(w + i, x + i, n_columns, LANES, n_w, n_x, sums);
    if (i < columns.end)
        add_bf16_products(w + i, x + i, n_columns, columns.end - i, n_w, n_x, sums);
    for (int m = 0; m < n_x; m++)
        for (int r = 0; r < n_w; r++) {
            float *to = y + m * y_stride + r, sum = _mm512_reduce_add_ps(sums[m][r]);
            *to = adds ? *to + sum : sum;
        }
}

INLINE void multiply_bf16_rows(const uint16_t *w, const uint16_t *x, int64_t n_columns,
                               range columns, int n_w, int n_x, float *y, int64_t y_stride, int adds)
{
#define TILE(n)                                                                                    \
    multiply_bf16_tile(w, x + m * n_columns, n_columns, columns, n_w, n, y + m * y_stride,         \
                       y_stride, adds)
    int m = 0;
    for (; m + TILE_X <= n_x; m += TILE_X)
        TILE(TILE_X);
    for (; m + 2 <= n_x; m += 2)
        TILE(2);
    if (m < n_x)
        TILE(1);
#undef TILE
}

static int takes_bf16(const matrix *w) { return w->type == WEIGHT_BF16; }

static void multiply_bf16(const matrix *w, range rows, const uint16_t *x, int n_x, float *y,
                          int store_mode, void *scratch)
{
    (void)scratch;
    const int64_t n = w->n_columns;
    const uint16_t *weights = (const uint16_t *)w->data;
    for (int m = 0; m < n_x; m += BLOCK_X) {
        const int size = (int)min(n_x - m, BLOCK_X);
        for (int64_t at = 0; at < n; at += CHUNK_COLUMNS) {
            const range columns = {at, min(at + CHUNK_COLUMNS, n)};
            const int adds = store_mode == ACCUMULATE || at > 0;
            int64_t r = rows.start;
#define ROWS(n_w)                                                                                  \
    multiply_bf16_rows(weights + r * n, x + m * n, n, columns, n_w, size, y + m * w->n_rows + r,   \
                       w->n_rows, adds)
            for (; r + TILE_W <= rows.end; r += TILE_W)
                ROWS(TILE_W);
            for (; r < rows.end; r++)
                ROWS(1);
#undef ROWS
        }
    }
}

static void round_row(const float *x, int64_t n_columns, int m, uint16_t *to)
{
    int64_t i = 0;
    for (to += m * n_columns; i + PADDING <= n_columns; i += PADDING)
        round_numbers(x + i, to + i);
    for (; i < n_columns; i++)
        to[i] = to_bf16(x[i]);
}

END_TARGET
#endif

const kernel_set avx512_bf16_kernels = {
    .name = "avx512_bf16",
#if HAS_AVX512_BF16
    .is_supported = is_supported,
    .is_slow = is_slow,
    .base = &avx512_kernels,
    .takes_bf16 = takes_bf16,
    .round_row = round_row,
    .multiply_bf16 = multiply_bf16,
    .attend_block = attend_block,
#endif
};
