/* Products of matrices in tiles of bfloat16, for amx.c.
 *
 * Before including this, the level includes amx_weights.h and prefill_bf16.h, and
 * defines FOR_SUMS, LOAD_TILE, STREAM_TILE and begin_tiles().
 */

#ifndef AMX_PRODUCTS_H
#define AMX_PRODUCTS_H

/* Sums of two tiles of activations with two panels: those of the first tile, then of the second. */
typedef struct {
    float of[2][2][TILE][PANEL];
} tile_sums;

/* Size of a block of products. Two tiles of activations with this number of columns stay in L1
 * while they are multiplied with the panels; these columns of all tiles, the weights and the sums
 * fill L2. Weights are loaded past L1 if `streams` is set. */
typedef struct {
    int columns, panels, streams;
} block_shape;

/* Each row of floats is a stream of its own from memory, and takes more of the caches. */
enum { MAX_COLUMNS = 512, MAX_PANELS = 32, BLOCK_TILES = 32 };
enum { FLOAT_COLUMNS = 256, FLOAT_PANELS = 16 };
_Static_assert(MAX_TERMS * FLOAT_COLUMNS * FLOAT_PANELS <= MAX_COLUMNS * MAX_PANELS,
               "both terms of floats fit in the scratch memory");
#define PACKED_SHAPE ((block_shape){MAX_COLUMNS, MAX_PANELS, 1})
#define FLOAT_SHAPE ((block_shape){FLOAT_COLUMNS, FLOAT_PANELS, 0})

/* Cache lines of a tile that comes later which are prefetched for each TILE_COLUMNS. */
INLINE int lines_ahead(block_shape shape) { return 2 * TILE / shape.panels; }

/* Scratch memory of a thread. */
typedef struct {
    uint16_t weights[MAX_PANELS * MAX_COLUMNS * TILE];
    tile_sums sums[BLOCK_TILES / 2][MAX_PANELS / 2];
} product_scratch;

/* Multiply the tiles of one or two panels with one or two tiles of rows of activations, which are
 * `w_stride` and `x_stride` numbers apart. Meanwhile, the next sums are prefetched to L1, and a
 * part of two later tiles, from `ahead` on, to L2: a few cache lines for each TILE_COLUMNS, so that
 * all arrive in time. */
INLINE void multiply_tiles(const uint16_t *w, int64_t w_stride, int n_right, const uint16_t *x,
                           int64_t x_stride, int n_left, int64_t n_columns, const uint16_t *ahead,
                           tile_sums *sums, int adds, block_shape shape)
{
    const int sum_lines = sizeof(tile_sums) / CACHE_LINE / (shape.columns / TILE_COLUMNS);
#define CLEAR(tile, a, b) _tile_zero(tile)
#define LOAD(tile, a, b) LOAD_TILE(tile, sums->of[(a) - 4][(b) - 6], CACHE_LINE)
#define STORE(tile, a, b) _tile_stored(tile, sums->of[(a) - 4][(b) - 6], CACHE_LINE)
#define LOAD_WEIGHTS(tile, from)                                                                   \
    do {                                                                                           \
        if (shape.streams)                                                                         \
            STREAM_TILE(tile, from, CACHE_LINE);                                                   \
        else                                                                                       \
            LOAD_TILE(tile, from, CACHE_LINE);                                                     \
    } while (0)
    if (adds)
        FOR_SUMS(LOAD);
    else
        FOR_SUMS(CLEAR);
    const char *next = (const char *)(sums + 1);
    for (int64_t i = 0; i < n_columns * TILE; i += TILE_NUMBERS) {
        for (int line = 0; line < sum_lines; line++, next += CACHE_LINE)
            __builtin_prefetch(next, 1);
        for (int line = 0; line < lines_ahead(shape); line++, ahead += TILE_COLUMNS) {
            __builtin_prefetch(ahead, 0, 2);
            __builtin_prefetch(ahead + x_stride, 0, 2);
        }
        LOAD_TILE(4, x + i, CACHE_LINE);
        LOAD_WEIGHTS(6, w + i);
        if (n_left > 1)
            LOAD_TILE(5, x + x_stride + i, CACHE_LINE);
        if (n_right > 1)
            LOAD_WEIGHTS(7, w + w_stride + i);
        FOR_SUMS(_tile_dpbf16ps);
    }
    FOR_SUMS(STORE);
#undef CLEAR
#undef LOAD
#undef STORE
#undef LOAD_WEIGHTS
}

/* Products of one matrix, stored in y (n_x, n_rows); or of two, whose gated products are stored. */
typedef struct {
    const matrix *w, *up; /* `up`: or NULL */
    const uint16_t *x;
    int n_x;
    float *y;
    int store_mode;
    uint16_t *gated;
    product_scratch *scratch;
} tile_products;

/* A part of them: some panels times up to BLOCK_TILES tiles of activations, of which the last may
 * have rows that are not stored. Of two matrices, each two panels are one of `w` and one of `up`. */
typedef struct {
    const tile_products *all;
    int64_t panel; /* of each matrix */
    int n_panels, start, n_x;
} product_block;

/* The matrix, and its panel, that are p-th in a block. */
INLINE const matrix *matrix_at(const product_block *block, int p)
{
    return block->all->up && p % 2 ? block->all->up : block->all->w;
}

INLINE int64_t panel_at(const product_block *block, int p)
{
    return block->panel + (block->all->up ? p / 2 : p);
}

/* Prefetch part `i` of `n` of a panel of floats, p-th of its block: the columns from `start` on, or
 * after the last ones the first of the next block. Those of packed panels follow each other. */
INLINE void prefetch_floats(const product_block *block, int p, int64_t start, int i, int n)
{
    const matrix *w = matrix_at(block, p);
    const int is_last = start >= w->n_columns;
    const int64_t first = panel_at(block, p + (is_last ? block->n_panels : 0)) * PANEL;
    for (int64_t row = PANEL * i / n; row < PANEL * (i + 1) / n; row++) {
        const uint16_t *columns = (const uint16_t *)w->data + (first + row) * w->n_columns;
        for (int64_t at = 0; at < FLOAT_COLUMNS; at += TILE_COLUMNS)
            __builtin_prefetch(columns + (is_last ? 0 : start) + at, 0, 2);
    }
}

/* Add the products of some columns to the sums of a block. */
INLINE void multiply_columns(const product_block *block, range columns, block_shape shape)
{
    const matrix *w = block->all->w;
    const int64_t stride = w->n_columns * TILE, n = columns.end - columns.start;
    const int64_t w_stride = shape.columns * TILE, term_stride = shape.panels * w_stride;
    const int n_tiles = (block->n_x + TILE - 1) / TILE, n_panels = block->n_panels;
    const int terms = n_terms(w), are_floats_ahead = w->type != PACKED && n_tiles > 2;
    const uint16_t *all_x = block->all->x + block->start * w->n_columns;
    product_scratch *scratch = block->all->scratch;
    for (int term = 0; term < terms; term++)
        for (int p = 0; p < n_panels; p++)
            store_tiles(matrix_at(block, p), panel_at(block, p), columns.start, n, term,
                        scratch->weights + term * term_stride + p * w_stride);
    for (int m = 0; m < n_tiles; m += 2) {
        const uint16_t *x = all_x + m * stride + columns.start * TILE;
        const uint16_t *next = m + 2 < n_tiles ? x + 2 * stride : all_x + columns.end * TILE;
        for (int p = 0; p < n_panels; p += 2) {
            const uint16_t *ahead = next + p / 2 * n * lines_ahead(shape);
            tile_sums *sums = &scratch->sums[m / 2][p / 2];
            for (int i = 0; i < 2 && are_floats_ahead; i++)
                prefetch_floats(block, p + i, columns.end, m / 2, (n_tiles + 1) / 2);
            for (int term = 0; term < terms; term++) {
                const uint16_t *tiles = scratch->weights + term * term_stride + p * w_stride;
                const int adds = columns.start > 0 || term > 0;
#define TILES_OF(n_x, n_w)                                                                         \
    multiply_tiles(tiles, w_stride, n_w, x, stride, n_x, n, ahead, sums, adds, shape)
                if (m + 1 < n_tiles && p + 1 < n_panels)
                    TILES_OF(2, 2);
                else if (m + 1 < n_tiles)
                    TILES_OF(2, 1);
                else if (p + 1 < n_panels)
                    TILES_OF(1, 2);
                else
                    TILES_OF(1, 1);
#undef TILES_OF
            }
        }
    }
}

/* Sums of row `m` of a block with its panel `p`. */
INLINE float *sums_at(product_scratch *scratch, int m, int p)
{
    return scratch->sums[m / (2 * TILE)][p / 2].of[m / TILE % 2][p % 2][m % TILE];
}

/* Rows of a result that are prefetched before they are written: they are far from each other. */
enum { RESULTS_AHEAD = 4 };

static void store_block(const product_block *block)
{
    const int64_t n_rows = block->all->w->n_rows, first = block->panel * PANEL;
    const int n_x = block->n_x, n_panels = block->n_panels, mode = block->all->store_mode;
    product_scratch *scratch = block->all->scratch;
    float *y = block->all->y + block->start * n_rows + first;
    for (int m = 0; m < n_x; m++)
        for (int p = 0; p < n_panels; p++) {
            float *to = y + m * n_rows + p * PANEL;
            __builtin_prefetch(to + RESULTS_AHEAD * n_rows, 1);
            const int64_t n = min(PANEL, n_rows - first - p * PANEL);
            const __mmask16 stored = (__mmask16)(0xffff >> (PANEL - n));
            __m512 values = _mm512_loadu_ps(sums_at(scratch, m, p));
            if (mode == ACCUMULATE)
                values = _mm512_add_ps(values, _mm512_maskz_loadu_ps(stored, to));
            _mm512_mask_storeu_ps(to, stored, values);
        }
}

/* Store silu(w * x) * (up * x), as round_row() stores rows. */
static void store_gated_block(const product_block *block)
{
    const int64_t n_rows = block->all->w->n_rows;
    const int n_x = block->n_x, n_panels = block->n_panels;
    product_scratch *scratch = block->all->scratch;
    for (int m = 0; m < n_x; m += TILE)
        for (int p = 0; p < n_panels; p += 2) {
            float *values = sums_at(scratch, m, p);
            avx512_kernels.swiglu(values, sums_at(scratch, m, p + 1), TILE * PANEL);
            const int64_t row = panel_at(block, p) * PANEL;
            uint16_t *to = block->all->gated + (block->start + m) * n_rows +
                           row / TILE_COLUMNS * TILE_NUMBERS + row % TILE_COLUMNS;
            for (int i = 0; i < TILE; i++, values += PANEL, to += TILE_COLUMNS)
                round_numbers(values, to);
        }
}

/* Compute a block, and store it. */
INLINE void multiply_shaped(const product_block *block, block_shape shape)
{
    const int64_t n = block->all->w->n_columns;
    for (int64_t at = 0; at < n; at += shape.columns)
        multiply_columns(block, (range){at, min(at + shape.columns, n)}, shape);
    if (block->all->up)
        store_gated_block(block);
    else
        store_block(block);
}

static void multiply_blocks(const tile_products *all, range rows)
{
    const int is_packed = all->w->type == PACKED, n_matrices = all->up ? 2 : 1;
    /* For few rows, reading floats takes longest, and the hardware prefetches few streams. */
    const int n_panels = is_packed             ? MAX_PANELS
                         : all->n_x > 2 * TILE ? FLOAT_PANELS
                                               : 2;
    const int64_t end = (rows.end + PANEL - 1) / PANEL, step = n_panels / n_matrices;
    begin_tiles();
    for (int m = 0; m < all->n_x; m += BLOCK_TILES * TILE)
        for (int64_t panel = rows.start / PANEL; panel < end; panel += step) {
            const product_block block = {all, panel, (int)min(step, end - panel) * n_matrices, m,
                                         (int)min(BLOCK_TILES * TILE, all->n_x - m)};
            if (is_packed)
                multiply_shaped(&block, PACKED_SHAPE);
            else
                multiply_shaped(&block, FLOAT_SHAPE);
        }
    _tile_release();
}

#endif
