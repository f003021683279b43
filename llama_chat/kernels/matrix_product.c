/* Products of packed matrices with quantized rows of activations. */

#include "matrix_product.h"

#include "cpu.h"
#include "work_shares.h"

/* Bytes of quantized rows that stay in the private cache of a core while all panels are read. */
enum { CACHED_ROWS = 3 << 17 };

INLINE void store(const float *values, int n, void *y, int64_t at, int store_mode)
{
    for (int i = 0; i < n; i++)
        if (store_mode == STORE_BF16)
            ((uint16_t *)y)[at + i] = to_bf16(values[i]);
        else if (store_mode == ACCUMULATE)
            ((float *)y)[at + i] += values[i];
        else
            ((float *)y)[at + i] = values[i];
}

/* Rows that are multiplied with all panels before the next rows, in tiles: at most MAX_BLOCK_TILES,
 * and enough to unpack panels for, even if they do not stay in the cache. */
enum { UNPACKED_TILES = 8, MAX_BLOCK_TILES = 32 };

/* Least tiles for which unpacking a panel takes less time than it saves. */
enum { MIN_UNPACKED_TILES = 4 };

/* Columns that are unpacked at a time: they stay in the first cache, with as much of a tile. */
enum { UNPACKED_COLUMNS = 512, UNPACKED_BYTES = PANEL * UNPACKED_COLUMNS * 3 / 2 };

/* Products of unpacked panels; NULL if there are none, or they are not faster. */
static const unpacked_product *unpacked_product_of(const kernel_set *kernels, const matrix *w)
{
    const unpacked_product *products = kernels->unpacked_products;
    return products && w->layout.bits < 8 ? products + layout_index(w->layout) : NULL;
}

/* Rows of a block of `n_x` rows: whole tiles, as many in each block as possible. */
static int block_rows(const kernel_set *kernels, const matrix *w, int is_unpacked, int n_x)
{
    const int tile = max_tile(kernels);
    const int64_t tile_bytes = tile * quantized_row_bytes(w->n_columns, w->layout.group);
    const int64_t n_cached = CACHED_ROWS / tile_bytes;
    const int64_t least = is_unpacked ? UNPACKED_TILES : 1;
    const int64_t n_rows = tile * min(max(n_cached, least), MAX_BLOCK_TILES);
    const int64_t n_blocks = (n_x + n_rows - 1) / n_rows;
    return (int)round_up((n_x + n_blocks - 1) / n_blocks, tile);
}

void quantize_tile(const kernel_set *kernels, const void *x, int is_bf16, int64_t n_columns,
                   int group, int n, uint8_t *tile)
{
    const int64_t row_bytes = n_columns * (is_bf16 ? 2 : 4);
    for (int m = 0; m < n; m++)
        kernels->quantize_row((const char *)x + m * row_bytes, is_bf16, n_columns, group, n, m,
                              tile);
}

/* Store products (n, PANEL) of a panel whose first row is `row`, of the rows from `m` on. */
static void store_products(const matrix *w, int64_t row, float *products, int m, int n, void *y,
                           int store_mode)
{
    const int n_added = store_mode == ADD_PAIRS ? 2 : 1;
    for (int i = 0; i < n; i += n_added) {
        float *values = products + i * PANEL;
        const int64_t at = (m + i) / n_added * w->n_rows + row;
        for (int j = 0; j < PANEL && n_added == 2; j++)
            values[j] += values[PANEL + j];
        if (w->n_rows - row >= PANEL) /* a constant for the compiler */
            store(values, PANEL, y, at, store_mode);
        else /* the padding of the last panel is not stored */
            store(values, (int)(w->n_rows - row), y, at, store_mode);
    }
}

/* Products of a matrix with quantized rows; the arguments of multiply_panels(). */
typedef struct {
    const kernel_set *kernels;
    const matrix *w;
    const uint8_t *quantized;
    void *y;
    int store_mode;
    dot_product *const *dot_products;
    const unpacked_product *unpacked; /* or NULL */
} panel_products;

/* Multiply a panel with `n_tiles` tiles of the largest size, into products (rows, PANEL). */
static void multiply_tiles(const panel_products *all, const uint8_t *panel, const uint8_t *tiles,
                           int n_tiles, float *products)
{
    _Alignas(CACHE_LINE) uint8_t unpacked[UNPACKED_BYTES];
    const matrix *w = all->w;
    const int tile = max_tile(all->kernels), group = w->layout.group;
    const int64_t step = UNPACKED_COLUMNS / group, end = n_groups(w);
    for (int64_t g = 0; g < end; g += step) {
        const int64_t n = min(step, end - g);
        all->unpacked->unpack(panel + panel_bytes_of(w->layout, g), n, unpacked);
        for (int i = 0; i < n_tiles; i++)
            all->unpacked->multiply(unpacked, n,
                                    tiles + i * tile * quantized_row_bytes(w->n_columns, group) +
                                        g * tile * tile_group_bytes(group),
                                    products + i * tile * PANEL, g > 0);
    }
}

/* Multiply a panel with the rows from `start` to `end`. */
static void multiply_panel_rows(const panel_products *all, int64_t panel, int start, int end)
{
    const matrix *w = all->w;
    const uint8_t *weights = w->data + panel * panel_bytes(w);
    const int64_t row_bytes = quantized_row_bytes(w->n_columns, w->layout.group);
    const int64_t row = panel * PANEL;
    const int is_direct = w->n_rows - row >= PANEL && all->store_mode == STORE_FLOAT;
    const int n_tiles = (end - start) / max_tile(all->kernels);
    float out[MAX_BLOCK_TILES * MAX_TILE * PANEL];
    int m = start;
    if (all->unpacked && n_tiles >= MIN_UNPACKED_TILES) {
        const int n = n_tiles * max_tile(all->kernels);
        multiply_tiles(all, weights, all->quantized + m * row_bytes, n_tiles, out);
        store_products(w, row, out, m, n, all->y, all->store_mode);
        m += n;
    }
    for (int size, n; m < end; m += n) {
        const uint8_t *tile = all->quantized + m * row_bytes;
        size = next_tile(all->kernels, end - m);
        n = all->kernels->tile_sizes[size];
        if (is_direct) {
            all->dot_products[size](weights, n_groups(w), tile,
                                    (float *)all->y + m * w->n_rows + row, w->n_rows);
            continue;
        }
        all->dot_products[size](weights, n_groups(w), tile, out, PANEL);
        store_products(w, row, out, m, n, all->y, all->store_mode);
    }
}

void multiply_panels(const kernel_set *kernels, const matrix *w, const uint8_t *quantized,
                     int n_x, void *y, int store_mode, range panels)
{
    const panel_products all = {kernels, w, quantized, y, store_mode,
                                dot_products_of(kernels, w->layout),
                                unpacked_product_of(kernels, w)};
    const int block = block_rows(kernels, w, all.unpacked != NULL, n_x);
    const int is_set_up = kernels->begin_tiles && n_x >= max_tile(kernels);
    if (is_set_up)
        kernels->begin_tiles(w->layout.group);
    for (int start = 0; start < n_x; start += block)
        for (int64_t panel = panels.start; panel < panels.end; panel++)
            multiply_panel_rows(&all, panel, start, (int)min(start + block, n_x));
    if (is_set_up)
        kernels->end_tiles();
}

/* ---- called from Python --------------------------------------------------------------------- */

/* Bytes of scratch memory that multiply() needs for `n_x` rows; none for weights in floats. */
EXPORT int64_t multiply_scratch_bytes(const matrix *w, int64_t n_x)
{
    return w->type != PACKED ? 0 : n_x * quantized_row_bytes(w->n_columns, w->layout.group);
}

typedef struct {
    const kernel_set *kernels;
    const matrix *w;
    const char *x;
    int n_x;
    void *y;
    int is_bf16;
    uint8_t *scratch;
    work_share *shares; /* of the panels, one for each thread */
} product_job;

/* Quantize this thread's share of x. */
static void quantize_share(const product_job *job, team_member me)
{
    const matrix *w = job->w;
    const int64_t x_bytes = w->n_columns * (job->is_bf16 ? 2 : 4);
    const int64_t row_bytes = quantized_row_bytes(w->n_columns, w->layout.group);
    const int tile = max_tile(job->kernels);
    const range tiles = share_of((job->n_x + tile - 1) / tile, me);
    for (int m = (int)tiles.start * tile; m < job->n_x && m < tiles.end * tile;) {
        const int n = next_tile_size(job->kernels, job->n_x - m);
        quantize_tile(job->kernels, job->x + m * x_bytes, job->is_bf16, w->n_columns,
                      w->layout.group, n, job->scratch + m * row_bytes);
        m += n;
    }
}

static void multiply_shares(team_member me, void *argument)
{
    const product_job *job = argument;
    quantize_share(job, me);
    wait_for_team();
    const team_phase phase = {me, job->shares, 1};
    const int64_t n = n_panels(job->w);
    for (range panels; take_part(&phase, n, 1, n, &panels);)
        multiply_panels(job->kernels, job->w, job->scratch, job->n_x, job->y,
                        job->is_bf16 ? STORE_BF16 : STORE_FLOAT, panels);
}

/* Multiply this thread's share of the rows of weights in floats. */
static void multiply_float_share(team_member me, void *argument)
{
    const product_job *job = argument;
    job->kernels->multiply_floats(job->w, share_of(job->w->n_rows, me), (const float *)job->x,
                                  job->n_x, job->y, STORE_FLOAT);
}

/* Compute y (n_x, n_rows) = x (n_x, n_columns) times the weights, transposed; both in float32, or
 * for packed weights in bfloat16 too. Uses `n_threads` threads, or one if there is too little work for more. */
EXPORT void multiply(const matrix *w, const void *x, int n_x, void *y, int is_bf16,
                     uint8_t *scratch, int level, int n_threads)
{
    const kernel_set kernels = kernels_of(level);
    work_share shares[n_threads];
    memset(shares, 0, sizeof shares);
    product_job job = {&kernels, w, x, n_x, y, is_bf16, scratch, shares};
    run_team(n_x * w->n_rows * w->n_columns > 65536 ? n_threads : 1,
             w->type == PACKED ? multiply_shares : multiply_float_share, &job);
}
