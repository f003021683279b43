/* Products of packed matrices with quantized rows of activations. */

#include "matrix_product.h"

#include "cpu.h"
#include "work_shares.h"

/* Bytes of quantized rows that stay in L2 while all panels are read; and
 * in the last-level cache, from where they are prefetched for panels that are unpacked. */
enum { CACHED_ROWS = 3 << 17, PREFETCHED_ROWS = 1 << 22 };

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

/* Most rows that are multiplied with all panels before the next rows, in tiles. */
enum { MAX_BLOCK_TILES = 32 };

/* Smallest number of tiles for which unpacking a panel saves more time than it takes. */
enum { MIN_UNPACKED_TILES = 4 };

/* Products of unpacked panels with `n_x` rows; NULL if there are none, or they are not faster. */
static const unpacked_product *unpacked_product_of(const kernel_set *kernels, const matrix *w,
                                                   int n_x)
{
    const unpacked_product *products = kernels->unpacked_products;
    if (!products || n_x < MIN_UNPACKED_TILES * max_tile(kernels))
        return NULL;
    products += layout_index(w->layout);
    return w->layout.bits < 8 || products->n_panels > 1 ? products : NULL;
}

void quantize_tile(const kernel_set *kernels, const void *x, int is_bf16, int64_t n_columns,
                   int group, int n, uint8_t *tile)
{
    const int64_t row_bytes = n_columns * (is_bf16 ? 2 : 4);
    for (int m = 0; m < n; m++)
        kernels->quantize_row((const char *)x + m * row_bytes, is_bf16, n_columns, group, n, m,
                              tile);
}

/* Rows of a result that are prefetched before they are written: they are far from each other. */
enum { RESULTS_AHEAD = 16 };

/* Store products (n, width) of panels whose first row is `row`, of the rows from `m` on. */
INLINE void store_panels(const matrix *w, int64_t row, float *products, int width, int m, int n,
                         void *y, int store_mode)
{
    const int n_added = store_mode == ADD_PAIRS ? 2 : 1;
    for (int i = 0; i < n; i += n_added) {
        float *values = products + i * width;
        const int64_t at = (m + i) / n_added * w->n_rows + row;
        for (int j = 0; j < width && store_mode != STORE_BF16; j += CACHE_LINE / 4)
            __builtin_prefetch((float *)y + at + RESULTS_AHEAD * w->n_rows + j, 1);
        for (int j = 0; j < width && n_added == 2; j++)
            values[j] += values[width + j];
        if (w->n_rows - row >= width) /* a constant for the compiler */
            store(values, width, y, at, store_mode);
        else /* the padding of the last panel is not stored */
            store(values, (int)(w->n_rows - row), y, at, store_mode);
    }
}

/* The same for one panel or two. */
static void store_products(const matrix *w, int64_t row, float *products, int n_panels, int m,
                           int n, void *y, int store_mode)
{
    if (n_panels == 2)
        store_panels(w, row, products, 2 * PANEL, m, n, y, store_mode);
    else
        store_panels(w, row, products, PANEL, m, n, y, store_mode);
}

/* Products of a matrix with quantized rows; the arguments of multiply_panels(). */
typedef struct {
    const kernel_set *kernels;
    const matrix *w;
    const uint8_t *quantized;
    void *y; /* NULL: they are not stored */
    int store_mode;
    int quantized_group; /* in which they are stored as quantized rows; 0: they are not */
    dot_product *const *dot_products;
    const unpacked_product *unpacked; /* or NULL */
} panel_products;

/* Products of a block of rows with two panels. */
typedef struct {
    _Alignas(CACHE_LINE) float at[MAX_BLOCK_TILES * MAX_TILE * 2 * PANEL];
} block_products;

/* One panel or two, and a block of rows that they are multiplied with, those from `start` on, into
 * products (rows, n_panels, PANEL); and what these are gates of, in the same form, or NULL. */
typedef struct {
    int64_t panel;
    int n_panels, start;
    float *products;
    const float *gated;
} product_block;

/* Rows of a block of `n_x` rows: whole tiles, as many in each block as possible. */
static int block_rows(const panel_products *all, int n_x)
{
    const int tile = max_tile(all->kernels);
    const int64_t row_bytes = quantized_row_bytes(all->w->n_columns, all->w->layout.group);
    const int64_t cached_bytes = all->unpacked ? PREFETCHED_ROWS : CACHED_ROWS;
    const int64_t n_rows = tile * max(1, min(cached_bytes / (tile * row_bytes), MAX_BLOCK_TILES));
    const int64_t n_blocks = (n_x + n_rows - 1) / n_rows;
    return (int)round_up((n_x + n_blocks - 1) / n_blocks, tile);
}

/* Quantize the products of a tile of `n` rows, from `m` on: whole groups of its columns. */
static void quantize_products(const panel_products *all, const product_block *block,
                              const float *products, int m, int n)
{
    const int group = all->quantized_group;
    const int64_t before = block->panel * PANEL / group * n * tile_group_bytes(group);
    uint8_t *tile = (uint8_t *)all->y + m * quantized_row_bytes(all->w->n_rows, group);
    quantize_tile(all->kernels, products, 0, block->n_panels * PANEL, group, n, tile + before);
}

/* Complete and store the products of a tile of `n` rows, from `m` on. */
static void finish_tile(const panel_products *all, const product_block *block, int m, int n)
{
    const int64_t width = block->n_panels * PANEL, at = (m - block->start) * width;
    if (block->gated)
        all->kernels->swiglu(block->products + at, block->gated + at, n * width);
    if (all->quantized_group)
        quantize_products(all, block, block->products + at, m, n);
    else if (all->y)
        store_products(all->w, block->panel * PANEL, block->products + at, block->n_panels, m, n,
                       all->y, all->store_mode);
}

/* Multiply as many panels as are multiplied at once with `n_tiles` tiles of the largest size. The
 * columns that come next are prefetched meanwhile, during some tiles for one panel and during others
 * for the other. */
static void multiply_tiles(const panel_products *all, const product_block *block, int n_tiles)
{
    _Alignas(CACHE_LINE) uint8_t unpacked[2 * UNPACKED_BYTES];
    const matrix *w = all->w;
    const unpacked_product *product = all->unpacked;
    const int n_panels = product->n_panels, width = n_panels * PANEL;
    const int tile = max_tile(all->kernels), group = w->layout.group;
    const int64_t step = UNPACKED_COLUMNS / group, end = n_groups(w);
    const int64_t row_bytes = quantized_row_bytes(w->n_columns, group);
    const int64_t n_parts = max(1, n_tiles / n_panels); /* of the columns of a panel */
    const uint8_t *panels = w->data + block->panel * panel_bytes(w);
    for (int64_t g = 0; g < end; g += step) {
        const int64_t n = min(step, end - g), n_bytes = panel_bytes_of(w->layout, n);
        const int is_last = g + n == end;
        const uint8_t *columns = panels + panel_bytes_of(w->layout, g);
        const uint8_t *next = is_last ? panels + n_panels * panel_bytes(w) : columns + n_bytes;
        const int lines_per_group = (int)(n_bytes / (n_parts * n * CACHE_LINE) + 1);
        for (int p = 0; p < n_panels; p++)
            product->unpack(columns + p * panel_bytes(w), n, unpacked + p * UNPACKED_BYTES);
        for (int i = 0, m = block->start; i < n_tiles; i++, m += tile) {
            const int64_t at = i / n_panels * n * lines_per_group * CACHE_LINE;
            product->multiply(&(unpacked_tile){
                .groups = unpacked,
                .tile = all->quantized + m * row_bytes + g * tile * tile_group_bytes(group),
                .n_groups = n,
                .out = block->products + i * tile * width,
                .adds = g > 0,
                .ahead = next + i % n_panels * panel_bytes(w) + at,
                .lines_per_group = at < n_bytes ? lines_per_group : 0,
            });
            if (is_last)
                finish_tile(all, block, m, tile);
        }
    }
}

/* Multiply the panels of a block with its rows, which end at `end`: unpacked for whole tiles, if
 * that is for so many panels. */
static void multiply_unpacked_rows(const panel_products *all, const product_block *block, int end)
{
    const matrix *w = all->w;
    const uint8_t *weights = w->data + block->panel * panel_bytes(w);
    const int64_t row_bytes = quantized_row_bytes(w->n_columns, w->layout.group);
    const int tile = max_tile(all->kernels), width = block->n_panels * PANEL;
    const int is_whole = block->n_panels == all->unpacked->n_panels;
    const int n_tiles = is_whole ? (end - block->start) / tile : 0;
    if (n_tiles)
        multiply_tiles(all, block, n_tiles);
    for (int m = block->start + n_tiles * tile, n; m < end; m += n) {
        const int size = next_tile(all->kernels, end - m);
        n = all->kernels->tile_sizes[size];
        for (int p = 0; p < block->n_panels; p++)
            all->dot_products[size](weights + p * panel_bytes(w), n_groups(w),
                                    all->quantized + m * row_bytes,
                                    block->products + (m - block->start) * width + p * PANEL,
                                    width);
        finish_tile(all, block, m, n);
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
    float out[MAX_TILE * PANEL];
    for (int m = start, size, n; m < end; m += n) {
        const uint8_t *tile = all->quantized + m * row_bytes;
        size = next_tile(all->kernels, end - m);
        n = all->kernels->tile_sizes[size];
        if (is_direct) {
            all->dot_products[size](weights, n_groups(w), tile,
                                    (float *)all->y + m * w->n_rows + row, w->n_rows);
            continue;
        }
        all->dot_products[size](weights, n_groups(w), tile, out, PANEL);
        store_products(w, row, out, 1, m, n, all->y, all->store_mode);
    }
}

static panel_products products_of(const kernel_set *kernels, const matrix *w,
                                  const uint8_t *quantized, void *y, int store_mode, int n_x)
{
    return (panel_products){.kernels = kernels,
                            .w = w,
                            .quantized = quantized,
                            .y = y,
                            .store_mode = store_mode,
                            .dot_products = dot_products_of(kernels, w->layout),
                            .unpacked = unpacked_product_of(kernels, w, n_x)};
}

/* Multiply some panels with the rows from `start` to `end`, unpacked. */
static void multiply_unpacked_panels(const panel_products *all, range panels, int start, int end)
{
    block_products products;
    for (int64_t panel = panels.start, n; panel < panels.end; panel += n) {
        n = min(all->unpacked->n_panels, panels.end - panel);
        multiply_unpacked_rows(all, &(product_block){panel, (int)n, start, products.at, NULL},
                               end);
    }
}

void multiply_panels(const kernel_set *kernels, const matrix *w, const uint8_t *quantized,
                     int n_x, void *y, int store_mode, range panels)
{
    const panel_products all = products_of(kernels, w, quantized, y, store_mode, n_x);
    const int block = block_rows(&all, n_x);
    for (int start = 0; start < n_x; start += block) {
        const int end = (int)min(start + block, n_x);
        if (all.unpacked)
            multiply_unpacked_panels(&all, panels, start, end);
        else
            for (int64_t panel = panels.start; panel < panels.end; panel++)
                multiply_panel_rows(&all, panel, start, end);
    }
}

int gated_width(const kernel_set *kernels, const matrix *gate, const matrix *up, int n_x)
{
    if (gate->type != PACKED || up->type != PACKED || !unpacked_product_of(kernels, up, n_x))
        return 0;
    const unpacked_product *product = unpacked_product_of(kernels, gate, n_x);
    return product ? product->n_panels * PANEL : 0;
}

void multiply_gated_panels(const kernel_set *kernels, const matrix *gate,
                           const uint8_t *gate_input, const matrix *up, const uint8_t *up_input,
                           int n_x, void *y, int quantized_group, range panels)
{
    panel_products gates = products_of(kernels, gate, gate_input, y, STORE_FLOAT, n_x);
    const panel_products ups = products_of(kernels, up, up_input, NULL, STORE_FLOAT, n_x);
    gates.quantized_group = quantized_group;
    const int block = block_rows(&gates, n_x);
    block_products products, gated;
    for (int start = 0; start < n_x; start += block) {
        const int end = (int)min(start + block, n_x);
        for (int64_t panel = panels.start, n; panel < panels.end; panel += n) {
            n = min(gates.unpacked->n_panels, panels.end - panel);
            multiply_unpacked_rows(&ups, &(product_block){panel, (int)n, start, gated.at, NULL},
                                   end);
            multiply_unpacked_rows(&gates,
                                   &(product_block){panel, (int)n, start, products.at, gated.at},
                                   end);
        }
    }
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
    const int64_t n = n_panels(job->w), n_pairs = (n + 1) / 2;
    for (range pairs; take_part(&phase, n_pairs, 1, n_pairs, &pairs);)
        multiply_panels(job->kernels, job->w, job->scratch, job->n_x, job->y,
                        job->is_bf16 ? STORE_BF16 : STORE_FLOAT,
                        (range){2 * pairs.start, min(2 * pairs.end, n)});
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
    if (n_x == 0)
        return;
    const kernel_set kernels = kernels_of(level);
    work_share shares[MAX_CALLED_THREADS];
    n_threads = (int)min(n_threads, MAX_CALLED_THREADS);
    memset(shares, 0, (size_t)n_threads * sizeof *shares);
    product_job job = {&kernels, w, x, n_x, y, is_bf16, scratch, shares};
    run_team(n_x * w->n_rows * w->n_columns > 65536 ? n_threads : 1,
             w->type == PACKED ? multiply_shares : multiply_float_share, &job);
}
