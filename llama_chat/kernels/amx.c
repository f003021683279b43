/* x86-64 processors with AMX (Intel since Sapphire Rapids): products of tiles, for prompts.
 *
 * Weights become tiles of bfloat16, a chunk of the columns of some panels at a time, which are then
 * multiplied with many rows of activations: scales and minima, which take most of the time of
 * integer products, are applied once for all of them. What must be exact is left to AVX-512, and so
 * are weights in float32.
 *
 * Sixteen rows of activations are the left operand and the rows of the sums. Their tiles follow each
 * other in memory: rows that are far apart would compete for the same lines of the cache.
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
#define TILES "amx-tile,amx-bf16,"

/* True if there are tiles of bfloat16, and the system lets the process use them. */
static int has_tiles(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    const unsigned features = 1u << 22 | 1u << 24;
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & features) == features &&
           syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}
#endif

static int is_supported(void)
{
    return avx512_bf16_kernels.is_supported && avx512_bf16_kernels.is_supported() && has_tiles();
}

BEGIN_TARGET(TILES "avx512f,avx512bw,avx512vl,avx512bf16,avx2,fma,f16c")

#define LANES 16
#define REGISTERS 32
#define W8_IS_SIGNED 1

#include "x86_quants.h"

INLINE vector load_f16(const uint16_t *from)
{
    return (vector)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
}

#include "panel_blocks.h"

/* Columns of two tiles of activations that stay in the first cache while they are multiplied with a
 * block of panels; these and the sums of a block of rows stay in the private one. */
enum { CHUNK_COLUMNS = 256, BLOCK_PANELS = 16, BLOCK_TILES = 32 };

#include "amx_weights.h"

/* Operand of _tile_loadconfig(). It must be a constant: for GCC, only its first bytes are read. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t n_rows[16];
} tile_shapes;
_Static_assert(sizeof(tile_shapes) == 64, "not the operand of LDTILECFG");

/* DO(sums, a, b) for tiles 0 to 3 of sums: those of tile 4 or 5 on the left, of which there are
 * `n_left`, and tile 6 or 7 on the right, `n_right`. */
#define FOR_SUMS(DO)                                                                               \
    do {                                                                                           \
        DO(0, 4, 6);                                                                               \
        if (n_right > 1)                                                                           \
            DO(1, 4, 7);                                                                           \
        if (n_left > 1)                                                                            \
            DO(2, 5, 6);                                                                           \
        if (n_left > 1 && n_right > 1)                                                             \
            DO(3, 5, 7);                                                                           \
    } while (0)

/* For GCC, loading a tile does not depend on what was written before. */
#define LOAD_TILE(tile, from, stride)                                                              \
    do {                                                                                           \
        __asm__ volatile("" ::: "memory");                                                         \
        _tile_loadd(tile, from, stride);                                                           \
    } while (0)

/* Configure tiles of sixteen rows of CACHE_LINE bytes. */
INLINE void begin_tiles(void)
{
    static const tile_shapes shapes = {1, .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
                                       .n_rows = {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&shapes);
}

#include "amx_attention.h"

/* ---- products of matrices ------------------------------------------------------------------- */

/* Sums of two tiles of activations with two panels: those of the first tile, then of the second. */
typedef struct {
    float of[2][2][TILE][PANEL];
} tile_sums;

/* Cache lines of sums, and of a tile that comes later, that are prefetched for each TILE_COLUMNS, so
 * that all of them are in time. */
enum {
    SUM_LINES = sizeof(tile_sums) / CACHE_LINE / (CHUNK_COLUMNS / TILE_COLUMNS),
    LINES_AHEAD = TILE / (BLOCK_PANELS / 2),
};

/* Scratch memory of a thread. */
typedef struct {
    uint16_t weights[MAX_TERMS][BLOCK_PANELS][CHUNK_COLUMNS * TILE];
    tile_sums sums[BLOCK_TILES / 2][BLOCK_PANELS / 2];
} product_scratch;

/* Multiply the tiles of one or two panels with one or two tiles of rows of activations, which are
 * `x_stride` numbers apart. Meanwhile, as many columns of two tiles that come later are prefetched to
 * the private cache from `ahead` on, and the next sums to the first one. */
INLINE void multiply_tiles(const uint16_t *w, int n_right, const uint16_t *x, int64_t x_stride,
                           int n_left, int64_t n_columns, const uint16_t *ahead,
                           tile_sums *sums, int adds)
{
#define CLEAR(tile, a, b) _tile_zero(tile)
#define LOAD(tile, a, b) LOAD_TILE(tile, sums->of[(a) - 4][(b) - 6], CACHE_LINE)
#define STORE(tile, a, b) _tile_stored(tile, sums->of[(a) - 4][(b) - 6], CACHE_LINE)
    if (adds)
        FOR_SUMS(LOAD);
    else
        FOR_SUMS(CLEAR);
    const char *next = (const char *)(sums + 1);
    for (int64_t i = 0; i < n_columns * TILE; i += TILE_NUMBERS) {
        for (int line = 0; line < SUM_LINES; line++, next += CACHE_LINE)
            __builtin_prefetch(next, 1);
        for (int line = 0; line < LINES_AHEAD; line++, ahead += TILE_COLUMNS) {
            __builtin_prefetch(ahead, 0, 2);
            __builtin_prefetch(ahead + x_stride, 0, 2);
        }
        LOAD_TILE(4, x + i, CACHE_LINE);
        LOAD_TILE(6, w + i, CACHE_LINE);
        if (n_left > 1)
            LOAD_TILE(5, x + x_stride + i, CACHE_LINE);
        if (n_right > 1)
            LOAD_TILE(7, w + CHUNK_COLUMNS * TILE + i, CACHE_LINE);
        FOR_SUMS(_tile_dpbf16ps);
    }
    FOR_SUMS(STORE);
#undef CLEAR
#undef LOAD
#undef STORE
}

/* A part of a product: some panels times up to BLOCK_TILES tiles of activations, of which the last
 * may have rows that are not stored. */
typedef struct {
    const matrix *w;
    int64_t panel, n_panels;
    const uint16_t *x;
    int n_x;
    product_scratch *scratch;
} product_block;

/* Prefetch part `i` of `n` of a panel of floats, p-th of its block: the columns from `start` on, or
 * after the last ones the first of the next block. Those of packed panels follow each other. */
INLINE void prefetch_floats(const product_block *block, int p, int64_t start, int i, int n)
{
    const matrix *w = block->w;
    const int is_last = start >= w->n_columns;
    const int64_t first = (block->panel + p + (is_last ? block->n_panels : 0)) * PANEL;
    for (int64_t row = PANEL * i / n; row < PANEL * (i + 1) / n; row++) {
        const uint16_t *columns = (const uint16_t *)w->data + (first + row) * w->n_columns;
        for (int64_t at = 0; at < CHUNK_COLUMNS; at += TILE_COLUMNS)
            __builtin_prefetch(columns + (is_last ? 0 : start) + at, 0, 2);
    }
}

/* Add the products of some columns to the sums of a block. */
static void multiply_columns(const product_block *block, range columns)
{
    const int64_t stride = block->w->n_columns * TILE, n = columns.end - columns.start;
    const int n_tiles = (block->n_x + TILE - 1) / TILE, n_panels = (int)block->n_panels;
    product_scratch *scratch = block->scratch;
    for (int term = 0; term < n_terms(block->w); term++)
        for (int p = 0; p < n_panels; p++)
            store_tiles(block->w, block->panel + p, columns.start, n, term,
                        scratch->weights[term][p]);
    for (int m = 0; m < n_tiles; m += 2) {
        const uint16_t *x = block->x + m * stride + columns.start * TILE;
        const uint16_t *next = m + 2 < n_tiles ? x + 2 * stride : block->x + columns.end * TILE;
        for (int p = 0; p < n_panels; p += 2) {
            const uint16_t *ahead = next + p * TILE_NUMBERS / 2;
            tile_sums *sums = &scratch->sums[m / 2][p / 2];
            for (int i = 0; i < 2 && n_tiles > 2 && block->w->type != PACKED; i++)
                prefetch_floats(block, p + i, columns.end, m / 2, (n_tiles + 1) / 2);
            for (int term = 0; term < n_terms(block->w); term++) {
                const uint16_t *w = scratch->weights[term][p];
                const int adds = columns.start > 0 || term > 0;
#define TILES_OF(n_x, n_w) multiply_tiles(w, n_w, x, stride, n_x, n, ahead, sums, adds)
                if (m + 1 < n_tiles && p + 1 < n_panels)
                    TILES_OF(2, 2);
                else if (m + 1 < n_tiles)
                    TILES_OF(2, 1);
                else if (p + 1 < n_panels)
                    TILES_OF(1, 2);
                else
                    TILES_OF(1, 1);
            }
        }
    }
}

/* Store the sums of a block in y (n_x, n_rows). */
static void store_block(const product_block *block, float *y, int store_mode)
{
    const int64_t n_rows = block->w->n_rows;
    for (int m = 0; m < block->n_x; m++)
        for (int p = 0; p < block->n_panels; p++) {
            const tile_sums *sums = &block->scratch->sums[m / (2 * TILE)][p / 2];
            const int64_t row = (block->panel + p) * PANEL;
            float *to = y + m * n_rows + row;
            const __mmask16 stored = (__mmask16)(0xffff >> (PANEL - min(PANEL, n_rows - row)));
            __m512 values = _mm512_loadu_ps(sums->of[m / TILE % 2][p % 2][m % TILE]);
            if (store_mode == ACCUMULATE)
                values = _mm512_add_ps(values, _mm512_maskz_loadu_ps(stored, to));
            _mm512_mask_storeu_ps(to, stored, values);
        }
}

static int takes_bf16(const matrix *w)
{
    return w->type != WEIGHT_F32 && w->n_columns % TILE_COLUMNS == 0;
}

static void round_row(const float *x, int64_t n_columns, int m, uint16_t *to)
{
    to += m / TILE * TILE * n_columns + m % TILE * TILE_COLUMNS;
    for (int64_t i = 0; i < n_columns; i += TILE_COLUMNS, to += TILE_NUMBERS)
        _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + i + LANES),
                                                             _mm512_loadu_ps(x + i)));
}

static void multiply_bf16(const matrix *w, range rows, const uint16_t *x, int n_x, float *y,
                          int store_mode, void *scratch)
{
    const range panels = {rows.start / PANEL, (rows.end + PANEL - 1) / PANEL};
    begin_tiles();
    /* For few rows, reading weights takes longest, and processors read ahead in few rows at a time. */
    const int64_t n_panels = n_x > 2 * TILE || w->type == PACKED ? BLOCK_PANELS : 2;
    for (int m = 0; m < n_x; m += BLOCK_TILES * TILE)
        for (int64_t panel = panels.start; panel < panels.end; panel += n_panels) {
            const product_block block = {w, panel, min(n_panels, panels.end - panel),
                                         x + m * w->n_columns,
                                         (int)min(BLOCK_TILES * TILE, n_x - m), scratch};
            for (int64_t at = 0; at < w->n_columns; at += CHUNK_COLUMNS)
                multiply_columns(&block, (range){at, min(at + CHUNK_COLUMNS, w->n_columns)});
            store_block(&block, y + m * w->n_rows, store_mode);
        }
    _tile_release();
}

END_TARGET
#endif

const kernel_set amx_kernels = {
    .name = "amx",
#if HAS_AMX
    .is_supported = is_supported,
    .base = &avx512_kernels,
    .takes_bf16 = takes_bf16,
    .round_row = round_row,
    .multiply_bf16 = multiply_bf16,
    .bf16_scratch_bytes = sizeof(product_scratch),
    .bf16_rows = BLOCK_PANELS * PANEL,
    .attend_block = attend_block,
#endif
};
