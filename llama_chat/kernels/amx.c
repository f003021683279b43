/* x86-64 processors with AMX (Intel since Sapphire Rapids): tiles of sixteen rows of 64 bytes, for
 * prompts. A few rows are left to the levels of AVX-512.
 *
 * Rows of activations are the left operand and the rows of the sums. The right operand has four
 * bytes of sixteen rows of weights in each of its rows: neighbouring columns, as in a panel.
 */

#include "matrix_product.h"

/* GCC supports these since version 11, Clang since 12; permission is asked of Linux. */
#if X86 && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define HAS_AMX 1
#else
#define HAS_AMX 0
#endif

extern const kernel_set avx512_kernels, avx512_bf16_kernels;

#if HAS_AMX
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Tests run a model of the tiles where the processor has none. */
#ifdef TEST_AMX_MODEL
#include "amx_model.h"
#define TILES

static int has_tiles(void) { return 1; }
#else
#define TILES "amx-tile,amx-int8,amx-bf16,"

/* True if there are tiles of bytes and of bfloat16, and the system lets the process use them. */
static int has_tiles(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    const unsigned features = 1u << 22 | 1u << 24 | 1u << 25;
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & features) == features &&
           syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}
#endif

static int is_supported(void)
{
    return avx512_bf16_kernels.is_supported && avx512_bf16_kernels.is_supported() && has_tiles();
}

BEGIN_TARGET(TILES "avx512f,avx512bw,avx512vl,avx2,fma,f16c")

#define LANES 16
#define REGISTERS 32
#define W8_IS_SIGNED 1

#include "x86_quants.h"

INLINE vector load_f16(const uint16_t *from)
{
    return (vector)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
}

#include "panel_blocks.h"

enum { TILE = 16 }; /* rows */

/* Operand of _tile_loadconfig(). It must be a constant: for GCC, only its first bytes are read. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t n_rows[16];
} tile_shapes;
_Static_assert(sizeof(tile_shapes) == 64, "not the operand of LDTILECFG");

/* For GCC, loading a tile does not depend on what was written before. */
#define LOAD_TILE(tile, from, stride)                                                              \
    do {                                                                                           \
        __asm__ volatile("" ::: "memory");                                                         \
        _tile_loadd(tile, from, stride);                                                           \
    } while (0)

/* ---- packed weights ------------------------------------------------------------------------- */

/* Quantize a row. In a tile of sixteen, the quants of each row are together, in the order of a tile
 * of one row. */
static void quantize_row(const void *x, int is_bf16, int64_t n_columns, int group, int n, int m,
                         uint8_t *tile)
{
    if (n != TILE) {
        avx512_kernels.quantize_row(x, is_bf16, n_columns, group, n, m, tile);
        return;
    }
    for (int64_t g = 0; g < n_columns / group; g++) {
        _Alignas(float) uint8_t row[MAX_GROUP + ROW_NUMBERS * sizeof(float)];
        uint8_t *to = tile + g * n * tile_group_bytes(group);
        avx512_kernels.quantize_row(x, is_bf16, group, group, 1, 0, row);
        memcpy(to + m * group, row, (size_t)group);
        for (int i = 0; i < ROW_NUMBERS; i++)
            memcpy(to + n * group + 4 * (i * n + m), row + group + 4 * i, 4);
        x = (const char *)x + group * (is_bf16 ? 2 : 4);
    }
}

/* Unpack the quants of a block, centred on zero, in the order of the columns of a tile. */
INLINE void unpack_block(const uint8_t *block, packed_layout layout, uint8_t *to)
{
    const int is_centred = layout.has_mins || multiplied_bits(layout) == 8;
    const uint8_t zero = (uint8_t)(is_centred ? 0 : 1 << (layout.bits - 1));
    for (int step = 0; step < layout.group / 8; step++, to += 2 * CHUNK) {
        byte_vector low, high;
        load_quants(block, step, 0, layout, &low, &high);
        *(byte_vector *)to = low - zero;
        *(byte_vector *)(to + CHUNK) = high - zero;
    }
}

/* Configure tiles of sums, of activations and of weights. */
static void begin_tiles(int group)
{
    static const tile_shapes groups_of_16 = {1, .row_bytes = {CHUNK, 16, CHUNK},
                                             .n_rows = {TILE, TILE, 4}};
    static const tile_shapes groups_of_32 = {1, .row_bytes = {CHUNK, 32, CHUNK},
                                             .n_rows = {TILE, TILE, 8}};
    _tile_loadconfig(group == 16 ? &groups_of_16 : &groups_of_32);
}

static void end_tiles(void) { _tile_release(); }

INLINE void multiply_whole_tile(const uint8_t *block, int64_t n_groups, const uint8_t *tile,
                                float *out, int64_t out_stride, packed_layout layout)
{
    _Alignas(CACHE_LINE) uint8_t quants[MAX_GROUP * PANEL];
    const integer_vector first_sums = (integer_vector){0} + ROUNDING_BITS; /* of every row */
    integer_vector sums[TILE][MAX_VECTORS];
    vector totals[TILE][MAX_VECTORS];
    super_block super = {0};
    block_scales scales;
    UNROLL(TILE)
    for (int m = 0; m < TILE; m++)
        totals[m][0] = (vector){0};
    for (int64_t g = 0; g < n_groups; g++, block += block_bytes(layout)) {
        prefetch_block(block + PREFETCH_AHEAD, layout);
        const tile_group x = tile_group_at(tile, g, layout.group, TILE);
        block = enter_block(block, g, 0, 1, layout, &super);
        unpack_block(block, layout, quants);
        LOAD_TILE(1, x.quants, layout.group);
        LOAD_TILE(2, quants, CHUNK);
        LOAD_TILE(0, &first_sums, 0);
        _tile_dpbssd(0, 1, 2);
        _tile_stored(0, sums, CHUNK);
        load_block_scales(block, 0, &super, layout, 1, &scales);
        add_scaled_sums(totals, sums, &scales, x, layout, TILE, 1);
    }
    UNROLL(TILE)
    for (int m = 0; m < TILE; m++)
        *(vector *)(out + m * out_stride) = totals[m][0];
}

INLINE void multiply_panel(const uint8_t *panel, int64_t n_groups, const uint8_t *tile, float *out,
                           int64_t out_stride, packed_layout layout, int n)
{
    if (n == TILE) {
        multiply_whole_tile(panel, n_groups, tile, out, out_stride, layout);
        return;
    }
    dot_product *const *products = dot_products_of(&avx512_kernels, layout);
    products[next_tile(&avx512_kernels, n)](panel, n_groups, tile, out, out_stride);
}

/* Those of AVX-512, and one of sixteen rows. */
#define FOR_TILE_SIZES(DO, ...)                                                                    \
    DO(1, __VA_ARGS__)                                                                             \
    DO(2, __VA_ARGS__)                                                                             \
    DO(4, __VA_ARGS__)                                                                             \
    DO(8, __VA_ARGS__)                                                                             \
    DO(12, __VA_ARGS__)                                                                            \
    DO(16, __VA_ARGS__)

#include "dot_products.h"

/* ---- weights in bfloat16 -------------------------------------------------------------------- */

/* Columns of a row of a tile; and columns of 32 rows of weights that stay in the first cache of a
 * core, and rows of activations that stay in its second one, while they are multiplied. */
enum { TILE_COLUMNS = 32, CHUNK_COLUMNS = 512, BLOCK_ROWS = 256 };

/* In squares of 2 * `half` 32-bit numbers a side, exchange the upper right and the lower left. */
INLINE void exchange(__m512i rows[TILE], int half)
{
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i step = _mm512_set1_epi32(half), sixteen = _mm512_set1_epi32(TILE);
    const __mmask16 is_right = _mm512_test_epi32_mask(lane, step);
    const __m512i below = _mm512_add_epi32(lane, sixteen);
    const __m512i upper = _mm512_mask_sub_epi32(lane, is_right, below, step);
    const __m512i lower = _mm512_mask_mov_epi32(_mm512_add_epi32(lane, step), is_right, below);
    for (int i = 0; i < TILE; i++)
        if (!(i & half)) {
            const __m512i a = rows[i], b = rows[i + half];
            rows[i] = _mm512_permutex2var_epi32(a, upper, b);
            rows[i + half] = _mm512_permutex2var_epi32(a, lower, b);
        }
}

/* Copy sixteen rows of weights as tiles, one for each TILE_COLUMNS: transposed, in pairs. */
INLINE void copy_as_tiles(const uint16_t *w, int64_t stride, int64_t n_columns, uint16_t *to)
{
    for (int64_t i = 0; i < n_columns; i += TILE_COLUMNS, to += TILE * TILE_COLUMNS) {
        __m512i square[TILE];
        for (int r = 0; r < TILE; r++)
            square[r] = _mm512_loadu_si512(w + r * stride + i);
        exchange(square, 1);
        exchange(square, 2);
        exchange(square, 4);
        exchange(square, 8);
        memcpy(to, square, sizeof square);
    }
}

/* Multiply one or two tiles of rows of weights with one or two of activations. */
INLINE void multiply_tiles(const uint16_t *w, int n_w, const uint16_t *x, int64_t x_stride, int n_x,
                           int64_t n_columns, float *y, int64_t y_stride, int adds)
{
    const int64_t x_bytes = 2 * x_stride, y_bytes = 4 * y_stride;
/* DO(sums, a, b) for tiles 0 to 3 of sums: of tile 4 or 5 of activations, and 6 or 7 of weights. */
#define FOR_SUMS(DO)                                                                               \
    do {                                                                                           \
        DO(0, 4, 6);                                                                               \
        if (n_w > 1)                                                                               \
            DO(1, 4, 7);                                                                           \
        if (n_x > 1)                                                                               \
            DO(2, 5, 6);                                                                           \
        if (n_x > 1 && n_w > 1)                                                                    \
            DO(3, 5, 7);                                                                           \
    } while (0)
#define SUMS_AT(a, b) (y + ((a) - 4) * TILE * y_stride + ((b) - 6) * TILE)
#define CLEAR(sums, a, b) _tile_zero(sums)
#define LOAD(sums, a, b) LOAD_TILE(sums, SUMS_AT(a, b), y_bytes)
#define STORE(sums, a, b) _tile_stored(sums, SUMS_AT(a, b), y_bytes)
    if (adds)
        FOR_SUMS(LOAD);
    else
        FOR_SUMS(CLEAR);
    for (int64_t i = 0; i < n_columns; i += TILE_COLUMNS) {
        LOAD_TILE(4, x + i, x_bytes);
        LOAD_TILE(6, w + i * TILE, CACHE_LINE);
        if (n_x > 1)
            LOAD_TILE(5, x + TILE * x_stride + i, x_bytes);
        if (n_w > 1)
            LOAD_TILE(7, w + (CHUNK_COLUMNS + i) * TILE, CACHE_LINE);
        FOR_SUMS(_tile_dpbf16ps);
    }
    FOR_SUMS(STORE);
}

/* Multiply one or two tiles of rows of weights with `n_x` rows of activations, in whole tiles. */
INLINE void multiply_tiled_rows(const uint16_t *w, int n_w, const uint16_t *x, int n_x,
                                int64_t n_columns, float *y, int64_t y_stride, int store_mode)
{
    _Alignas(CACHE_LINE) uint16_t tiles[2 * TILE * CHUNK_COLUMNS];
    for (int64_t at = 0; at < n_columns; at += CHUNK_COLUMNS) {
        const int64_t size = min(CHUNK_COLUMNS, n_columns - at);
        const int adds = store_mode == ACCUMULATE || at > 0;
        for (int r = 0; r < n_w; r++)
            copy_as_tiles(w + r * TILE * n_columns + at, n_columns, size,
                          tiles + r * TILE * CHUNK_COLUMNS);
        int m = 0;
#define TILES_OF_X(n)                                                                              \
    multiply_tiles(tiles, n_w, x + m * n_columns + at, n_columns, n, size, y + m * y_stride,       \
                   y_stride, adds)
        for (; m + 2 * TILE <= n_x; m += 2 * TILE)
            TILES_OF_X(2);
        if (m < n_x)
            TILES_OF_X(1);
#undef TILES_OF_X
    }
}

static void multiply_bf16(const matrix *w, range rows, const uint16_t *x, int n_x, float *y,
                          int store_mode)
{
    static const tile_shapes shapes = {1, .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
                                       .n_rows = {16, 16, 16, 16, 16, 16, 16, 16}};
    const int64_t n = w->n_columns, end = rows.end - (rows.end - rows.start) % TILE;
    const uint16_t *weights = (const uint16_t *)w->data;
    const int n_tiled = n % TILE_COLUMNS ? 0 : n_x / TILE * TILE;
    _tile_loadconfig(&shapes);
    for (int m = 0; m < n_tiled; m += BLOCK_ROWS) {
        const int size = (int)min(n_tiled - m, BLOCK_ROWS);
        int64_t r = rows.start;
#define ROWS(n_w)                                                                                  \
    multiply_tiled_rows(weights + r * n, n_w, x + m * n, size, n, y + m * w->n_rows + r,           \
                        w->n_rows, store_mode)
        for (; r + 2 * TILE <= end; r += 2 * TILE)
            ROWS(2);
        if (r < end)
            ROWS(1);
#undef ROWS
    }
    _tile_release();
    /* What is no whole tile: the last activations, and the last rows of weights. */
    avx512_bf16_kernels.multiply_bf16(w, (range){rows.start, end}, x + n_tiled * n, n_x - n_tiled,
                                      y + n_tiled * w->n_rows, store_mode);
    avx512_bf16_kernels.multiply_bf16(w, (range){end, rows.end}, x, n_x, y, store_mode);
}

/* Its processors multiply bfloat16 faster in tiles, but in vectors slower than floats. */
static void attend_block(const kv_cache *cache, int64_t layer, const float *q, int64_t head,
                         range tokens, float *out, const prefill_buffers *buffers)
{
    avx512_kernels.attend_block(cache, layer, q, head, tokens, out, buffers);
}

END_TARGET
#endif

const kernel_set amx_kernels = {
    .name = "amx",
    .base = &avx512_bf16_kernels,
#if HAS_AMX
    .is_supported = is_supported,
    DOT_PRODUCTS,
    .begin_tiles = begin_tiles,
    .end_tiles = end_tiles,
    .quantize_row = quantize_row,
    .multiply_bf16 = multiply_bf16,
    .attend_block = attend_block,
#endif
};
