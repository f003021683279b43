/* x86-64 processors with AMX (Intel since Sapphire Rapids): products of tiles, for prompts.
 *
 * Weights become tiles of bfloat16, a chunk of the columns of some panels at a time, which are then
 * multiplied with many rows of activations: scales and minima, which take most of the time of
 * integer products, are applied once for all of them. Exact rows and weights in float32 are left to
 * AVX-512.
 *
 * Sixteen rows of activations are the left operand and the rows of the sums. Their tiles follow each
 * other in memory: rows that are far apart would compete for the same lines of the cache.
 */

#include "matrix_product.h"

/* GCC supports these since version 11, Clang since 12. Linux must permit their use. */
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

/* Tests emulate the tiles if the processor has none. */
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

/* GCC does not know that loading a tile depends on memory written before. */
#define LOAD_TILE_BY(load, tile, from, stride)                                                     \
    do {                                                                                           \
        __asm__ volatile("" ::: "memory");                                                         \
        load(tile, from, stride);                                                                  \
    } while (0)
#define LOAD_TILE(...) LOAD_TILE_BY(_tile_loadd, __VA_ARGS__)

/* The same, past L1. */
#define STREAM_TILE(...) LOAD_TILE_BY(_tile_stream_loadd, __VA_ARGS__)

/* Configure tiles of sixteen rows of CACHE_LINE bytes. */
INLINE void begin_tiles(void)
{
    static const tile_shapes shapes = {1, .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
                                       .n_rows = {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&shapes);
}

#include "amx_attention.h"
#include "amx_products.h"

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
    multiply_blocks(&(tile_products){.w = w, .x = x, .n_x = n_x, .y = y,
                                     .store_mode = store_mode, .scratch = scratch},
                    rows);
}

static void multiply_gated_bf16(const matrix *gate, const matrix *up, range rows,
                                const uint16_t *x, int n_x, uint16_t *y, void *scratch)
{
    multiply_blocks(&(tile_products){.w = gate, .up = up, .x = x, .n_x = n_x, .gated = y,
                                     .scratch = scratch},
                    rows);
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
    .bf16_rows = MAX_PANELS * PANEL,
    .multiply_gated_bf16 = multiply_gated_bf16,
    .attend_block = attend_block,
#endif
};
