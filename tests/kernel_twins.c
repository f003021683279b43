/* Compares the kernels of all levels that a processor supports with their portable twins.
 *
 * Prints the name of each level, and a line for each kernel that differs. Most inputs are such that
 * all results are whole numbers below 2**24: then results must be equal, in whatever order they are
 * summed. Others are random, and results may differ by rounding.
 */

#include "attention_twins.h"
#include "bf16_twins.h"
#include "likeliest.h"

/* ---- packed matrices ------------------------------------------------------------------------ */

enum { MAX_COLUMNS = 512, MAX_ROWS = 19 };

/* Multiply one panel with a tile, by both; and row by row, which must give the same. */
static void compare_tile(const matrix *w, int index, int size, const float *x, float tolerance)
{
    static uint8_t tile[MAX_TILE * 3 * MAX_COLUMNS], row[3 * MAX_COLUMNS];
    float got[MAX_TILE * (PANEL + 3)], expected[MAX_TILE * PANEL], alone[PANEL];
    const int n = tested.tile_sizes[size], group = w->layout.group;
    dot_product *const *products = tested.dot_products + index * tested.n_tile_sizes;
    quantize_tile(&tested, x, 0, w->n_columns, group, n, tile);
    products[size](w->data, n_groups(w), tile, got, PANEL + 3);
    for (int m = 0; m < n; m++) {
        tested.quantize_row(x + m * w->n_columns, 0, w->n_columns, group, 1, 0, row);
        portable.dot_products[index * portable.n_tile_sizes](w->data, n_groups(w), row,
                                                             expected + m * PANEL, PANEL);
        products[0](w->data, n_groups(w), row, alone, PANEL);
        memmove(got + m * PANEL, got + m * (PANEL + 3), sizeof alone);
        report("tile of several rows", memcmp(alone, got + m * PANEL, sizeof alone) == 0);
    }
    compare("packed product", got, expected, n * PANEL, tolerance);
}

/* Check that the weights of a row that are no numbers are none in bfloat16 either. */
static void compare_nan(const matrix *w, int64_t row, const uint16_t *halves)
{
    static float floats[MAX_COLUMNS];
    tested.dequantize_row(w, row, floats, 0);
    for (int64_t i = 0; i < w->n_columns; i++)
        report("NaN of dequantize_row", isnan(floats[i]) == isnan(bf16_to_float(halves[i])));
}

static void compare_packed(packed_layout layout, int index)
{
    static uint8_t panels[2 * 4 * PANEL * MAX_COLUMNS];
    static float x[MAX_TILE * MAX_COLUMNS], got[MAX_COLUMNS], expected[MAX_COLUMNS];
    static const int bytes[] = {0, 0xff, 0x80, 0x7f, -1, -1};
    const int span = layout.groups_per_super_block ? layout.groups_per_super_block : 1;
    for (int n_spans = 1; n_spans <= 2; n_spans++) {
        matrix w = {PACKED, layout, MAX_ROWS, n_spans * span * layout.group, panels};
        for (int pattern = 0; pattern < 6; pattern++)
            for (int is_whole = pattern < 4; is_whole < 2; is_whole++) {
                fill_panels(&w, bytes[pattern], is_whole, panels);
                for (int size = 0; size < tested.n_tile_sizes; size++) {
                    fill(x, MAX_TILE * w.n_columns);
                    for (int i = 0; i < MAX_TILE * w.n_columns && is_whole; i++)
                        x[i] = i % layout.group == 0 || pattern % 2
                                   ? random_below(2) ? 127 : -127 /* so that the scale is 1 */
                                   : (float)(random_below(255) - 127);
                    compare_tile(&w, index, size, x, is_whole ? 0 : 1e-5f);
                }
                for (int64_t i = 0; i < 2 * w.n_rows; i++) {
                    const int64_t row = i / 2, is_bf16 = i % 2, bytes = is_bf16 ? 2 : 4;
                    tested.dequantize_row(&w, row, got, is_bf16);
                    portable.dequantize_row(&w, row, expected, is_bf16);
                    report("dequantize_row",
                           memcmp(got, expected, (size_t)(w.n_columns * bytes)) == 0);
                    if (is_bf16)
                        compare_nan(&w, row, (const uint16_t *)got);
                }
            }
    }
}

/* Rows for which panels are unpacked, and some that are left. */
enum { MOST_X = 4 * MAX_TILE + 3 };

/* Quantize the `n_x` rows of x (n_x, n_columns) in tiles. */
static void quantize_tiles(const float *x, int64_t n_columns, int group, int n_x, uint8_t *tiles)
{
    for (int m = 0, n; m < n_x; m += n) {
        n = next_tile_size(&tested, n_x - m);
        quantize_tile(&tested, x + m * n_columns, 0, n_columns, group, n,
                      tiles + m * quantized_row_bytes(n_columns, group));
    }
}

/* Compare gated products of whole panels of two matrices, quantized as they are computed, with
 * those that are quantized afterwards. */
static void compare_quantized(const matrix w[2], const uint8_t *input, int n_x, int group)
{
    enum { ROWS = 4 * PANEL };
    static uint8_t got[MOST_X * 2 * ROWS], expected[MOST_X * 2 * ROWS];
    static float y[MOST_X * ROWS];
    const range all = {0, ROWS / PANEL};
    matrix gate = w[0], up = w[1];
    gate.n_rows = up.n_rows = ROWS;
    multiply_gated_panels(&tested, &gate, input, &up, input, n_x, got, group, all);
    multiply_gated_panels(&tested, &gate, input, &up, input, n_x, y, 0, all);
    quantize_tiles(y, ROWS, group, n_x, expected);
    report("quantized gated products",
           memcmp(got, expected, (size_t)(n_x * quantized_row_bytes(ROWS, group))) == 0);
}

/* Compare products with many rows, for which panels are unpacked, in several parts, with those of
 * some of the rows alone, which must be the same; also gated ones. */
static void compare_many_rows(packed_layout layout)
{
    enum { ROWS = 4 * PANEL + 3, COLUMNS = 768 };
    static uint8_t panels[2][5 * PANEL * 2 * COLUMNS], tiles[MOST_X * 3 * COLUMNS];
    static uint8_t row[3 * COLUMNS];
    static float x[MOST_X * COLUMNS], got[MOST_X * ROWS], expected[2][MOST_X * ROWS];
    const int n_x = 4 * max_tile(&tested) + 3;
    const matrix w[] = {{PACKED, layout, ROWS, COLUMNS, panels[0]},
                        {PACKED, layout, ROWS, COLUMNS, panels[1]}};
    fill(x, n_x * COLUMNS);
    for (int i = 0; i < n_x * COLUMNS; i++)
        if (i / COLUMNS % 10 == 0) /* quants of the largest size */
            x[i] = i % 3 ? 127 : -127;
    quantize_tiles(x, COLUMNS, layout.group, n_x, tiles);
    for (int i = 0; i < 2; i++) {
        for (int p = 0; p < n_panels(w); p++) {
            static const int bytes[] = {0xff, 0x80, -1, 0, 0x7f};
            const matrix panel = {PACKED, layout, PANEL, COLUMNS, NULL};
            fill_panels(&panel, bytes[p], 0, panels[i] + p * panel_bytes(w));
        }
        for (int m = 0; m < n_x; m += 5) {
            quantize_tile(&tested, x + m * COLUMNS, 0, COLUMNS, layout.group, 1, row);
            multiply_panels(&tested, w + i, row, 1, expected[i] + m * ROWS, STORE_FLOAT,
                            (range){0, n_panels(w)});
        }
        const range some = {i, n_panels(w)}; /* an odd number, and an even one */
        multiply_panels(&tested, w + i, tiles, n_x, got, STORE_FLOAT, some);
        for (int m = 0; m < n_x; m += 5) {
            const int64_t at = m * ROWS + some.start * PANEL;
            report("products of many rows", memcmp(got + at, expected[i] + at,
                                                   (ROWS - some.start * PANEL) * 4) == 0);
        }
    }
    const int width = gated_width(&tested, w, w + 1, n_x);
    if (!width)
        return;
    multiply_gated_panels(&tested, w, tiles, w + 1, tiles, n_x, got, 0, (range){0, n_panels(w)});
    for (int m = 0; m < n_x; m += 5) {
        tested.swiglu(expected[0] + m * ROWS, expected[1] + m * ROWS, ROWS);
        report("gated products", memcmp(got + m * ROWS, expected[0] + m * ROWS, ROWS * 4) == 0);
    }
    for (int group = 16; group <= width; group *= 2)
        compare_quantized(w, tiles, n_x, group);
}

/* ---- quantization of activations ------------------------------------------------------------ */

/* Compare row 1 of a tile of 3. A number half-way between two may be rounded either way. */
static void compare_groups(const void *x, int is_bf16, int64_t n, int group)
{
    static uint8_t got[9 * MAX_COLUMNS], expected[9 * MAX_COLUMNS];
    tested.quantize_row(x, is_bf16, n, group, 3, 1, got);
    portable.quantize_row(x, is_bf16, n, group, 3, 1, expected);
    for (int64_t g = 0; g < n / group; g++) {
        const tile_group a = tile_group_at(got, g, group, 3);
        const tile_group b = tile_group_at(expected, g, group, 3);
        int32_t sum = 0;
        compare("scale of quantize_row", a.scales + 1, b.scales + 1, 1, 0);
        if (isnan(b.scales[1]))
            continue;
        for (int i = 0; i < group; i++) {
            const int at = 8 * (i % (group / 2) / 4 * 3 + 1) + i / (group / 2) * 4 + i % 4;
            report("quantize_row", abs(a.quants[at] - b.quants[at]) <= 1);
            sum += a.quants[at];
        }
        report("sum of quantize_row", a.sums[1] == a.scales[1] * (float)sum);
        report("first sums of quantize_row",
               a.first_sums[1] == ROUNDING_BITS - 8 * sum &&
                   a.wide_first_sums[1] == ROUNDING_BITS - (group == 16 ? 32 : 128) * sum);
    }
}

static void compare_quantization(void)
{
    float x[256], got[256], expected[256];
    uint16_t halves[256];
    for (int round = 0; round < 40; round++) {
        fill(x, 256);
        for (int i = 0; i < 32; i++) { /* halves are rounded to even, in a group of scale 1 */
            x[i] = i ? (float)random_below(253) - 126.5f : 127;
            x[32 + i] = 0;
            x[64 + i] *= 1e30f;
            x[96 + i] *= 1e-37f; /* 127 divided by them is infinite */
        }
        x[128 + random_below(32)] = round % 3 ? NAN : INFINITY;
        for (int i = 0; i < 256; i++)
            halves[i] = to_bf16(x[i]);
        for (int group = 16; group <= 32; group += 16) {
            compare_groups(x, 0, 256, group);
            compare_groups(halves, 1, 256, group);
            tested.quantization_error(x, 256, group, got);
            portable.quantization_error(x, 256, group, expected);
            for (int i = 0; i < 256; i++)
                got[i] = fabsf(got[i]), expected[i] = fabsf(expected[i]);
            for (int g = 0; g < 256; g += group)
                compare("quantization_error", got + g, expected + g, group, 1e-3f);
        }
    }
}

/* ---- matrices of floats --------------------------------------------------------------------- */

static void compare_float_products(void)
{
    enum { ROWS = 54, COLUMNS = 295, N_X = 61 }; /* more than a panel, in each direction */
    static const int sizes[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 47, 48, N_X};
    static float weights[ROWS * COLUMNS], x[N_X * COLUMNS];
    static uint16_t halves[ROWS * COLUMNS];
    enum { FEWEST = MAX_EXACT_BATCH + 1 }; /* rows that are summed as many are */
    static float got[N_X * ROWS], expected[N_X * ROWS], alone[ROWS], fewest[FEWEST * ROWS];
    for (int type = WEIGHT_F32; type <= WEIGHT_F16; type++)
        for (size_t size = 0; size < sizeof sizes / sizeof *sizes; size++)
            for (int is_whole = 0; is_whole < 2; is_whole++) {
                const int n_x = sizes[size];
                const int64_t columns = n_x % 4 ? 1 + random_below(67) : COLUMNS;
                is_whole ? fill_whole(weights, ROWS * columns, 60) : fill(weights, ROWS * columns);
                is_whole ? fill_whole(x, n_x * columns, 60) : fill(x, n_x * columns);
                if (!is_whole)
                    weights[0] = n_x % 2 ? INFINITY : NAN, weights[1] = 3e-7f; /* subnormal */
                for (int64_t i = 0; i < ROWS * columns; i++) {
                    halves[i] = type == WEIGHT_F16 ? to_half(weights[i]) : to_bf16(weights[i]);
                    if (type == WEIGHT_F16 && isinf(weights[i]))
                        halves[i] = 0x7c00; /* which to_half() never makes */
                }
                const void *data = type == WEIGHT_F32 ? (void *)weights : (void *)halves;
                const matrix w = {type, {0}, ROWS, columns, data};
                fill_whole(got, N_X * ROWS, 60);
                memcpy(expected, got, sizeof got);
                const int mode = n_x % 3 ? STORE_FLOAT : ACCUMULATE;
                tested.multiply_floats(&w, (range){1, ROWS}, x, n_x, got, mode);
                portable.multiply_floats(&w, (range){1, ROWS}, x, n_x, expected, mode);
                compare("multiply_floats", got, expected, n_x * ROWS, is_whole ? 0 : 1e-5f);
                const int is_exact = n_x <= MAX_EXACT_BATCH && mode == STORE_FLOAT;
                for (int m = 0; m < n_x && is_exact; m++) {
                    tested.multiply_floats(&w, (range){1, ROWS}, x + m * columns, 1, alone, mode);
                    report("multiply_floats of several rows",
                           memcmp(alone + 2, got + m * ROWS + 2, sizeof alone - 8) == 0);
                }
                if (n_x > MAX_EXACT_BATCH && mode == STORE_FLOAT) {
                    tested.multiply_floats(&w, (range){1, ROWS}, x, FEWEST, fewest, mode);
                    for (int m = 0; m < FEWEST; m++)
                        report("multiply_floats of many rows",
                               memcmp(fewest + m * ROWS + 2, got + m * ROWS + 2,
                                      sizeof alone - 8) == 0);
                }
            }
}

/* ---- between the products ------------------------------------------------------------------- */

static void compare_activations(void)
{
    float x[100], y[100], got[100], expected[100];
    for (int n = 1; n <= 100; n += n < 20 ? 1 : 16) {
        fill(x, n);
        fill(y, n);
        tested.rms_norm(x, y, n, 1e-5f, got);
        portable.rms_norm(x, y, n, 1e-5f, expected);
        compare("rms_norm", got, expected, n, 1e-6f);
        for (int i = 0; i < n; i++)
            got[i] = expected[i] = x[i] * (i % 3 ? 5.0f : 1e3f);
        tested.swiglu(got, y, n);
        portable.swiglu(expected, y, n);
        compare("swiglu", got, expected, n, 1e-6f);
        got[0] = tested.sum_exponentials(x, n, 4, 0.7f);
        expected[0] = portable.sum_exponentials(x, n, 4, 0.7f);
        compare("sum_exponentials", got, expected, 1, 1e-6f);
    }
}

static void compare_maxima(void)
{
    float x[1300], got[128], expected[128];
    for (int n = 1; n <= 1300; n += n < 20 ? 1 : 40) {
        fill(x, n);
        tested.block_maxima(x, n, got);
        portable.block_maxima(x, n, expected);
        compare("block_maxima", got, expected, (int)logit_blocks(n), 0);
    }
}

int main(int n_arguments, char **arguments)
{
    (void)arguments;
    kernel_set previous = portable = kernels_of(0);
    for (int level = 0; level < n_levels(); level++) {
        if (!level_is_supported(level))
            continue;
        tested = kernels_of(level);
        puts(tested.name);
        if (n_arguments > 1) /* only list the levels */
            continue;
/* Functions that a level inherits were compared before. */
#define HAS_OWN(function) (tested.function != previous.function)
        int index = 0;
#define COMPARE_PACKED(...) compare_packed((packed_layout){__VA_ARGS__}, index++);
#define COMPARE_MANY_ROWS(...) compare_many_rows((packed_layout){__VA_ARGS__});
        if (HAS_OWN(dot_products)) {
            FOR_LAYOUTS(COMPARE_PACKED)
            FOR_LAYOUTS(COMPARE_MANY_ROWS)
        }
        if (HAS_OWN(quantize_row))
            compare_quantization();
        if (HAS_OWN(multiply_floats))
            compare_float_products();
#define COMPARE_PACKED_BF16(...) compare_packed_bf16_products((packed_layout){__VA_ARGS__});
        if (HAS_OWN(multiply_bf16)) {
            compare_bf16_products();
            FOR_LAYOUTS(COMPARE_PACKED_BF16)
        }
        if (HAS_OWN(rms_norm))
            compare_activations();
        compare_maxima();
        for (int kind = FLOAT32; kind <= FLOAT16 && HAS_OWN(attend_block); kind++) {
            compare_cache(kind, 8, 4, 8);
            compare_cache(kind, 6, 2, 16);
            compare_cache(kind, 6, 1, 20);
            compare_cache(kind, 2, 2, 64);
            compare_cache(kind, 4, 1, 64);
            compare_cache(kind, 2, 1, 96);
            compare_family(kind, 6, 2, 16);
            compare_family(kind, 6, 2, 20);
            compare_family(kind, 8, 8, 8);
            compare_family(kind, 4, 1, 64);
            compare_family(kind, 2, 1, 128);
        }
        previous = tested;
    }
    return n_failures != 0;
}
