/* Comparison of products of activations in bfloat16. */

#ifndef BF16_TWINS_H
#define BF16_TWINS_H

#include "kernel_twins.h"

enum {
    BF16_ROWS = 4 * PANEL + 20,
    BF16_MOST_ROWS = 34 * PANEL + 5, /* of packed weights: more than are multiplied at once */
    BF16_COLUMNS = 4160,
    BF16_X = 530,
    BF16_NUMBERS = 69 * BF16_COLUMNS /* of activations: BF16_X rows have few columns */
};

/* Check how `n` numbers are rounded, some columns at a time, which every layout keeps together. */
static void compare_rounding(const float *x, int64_t n)
{
    enum { TOGETHER = 32 };
    uint16_t rounded[TOGETHER];
    for (int64_t i = 0; i < n; i += TOGETHER) {
        const int64_t size = min(TOGETHER, n - i);
        tested.round_row(x + i, size, 0, rounded);
        for (int64_t j = 0; j < size; j++)
            report("round_row", rounded[j] == to_bf16(x[i + j]));
    }
}

/* Check that products of both halves of a matrix are gated as by themselves, bit for bit. */
static void compare_gated_bf16(const matrix *w, const uint16_t *x, int n_x, void *scratch)
{
    enum { PAIR = 2 * PANEL };
    static float gate[BF16_X * BF16_MOST_ROWS], up[BF16_X * BF16_MOST_ROWS];
    static uint16_t got[(BF16_X + PANEL) * BF16_MOST_ROWS], expected[sizeof got / sizeof *got];
    matrix first = *w, second = *w;
    const int64_t n = first.n_rows = second.n_rows = w->n_rows / 2 / PAIR * PAIR;
    const int64_t bytes = w->type == PACKED ? n / PANEL * panel_bytes(w) : n * w->n_columns * 2;
    second.data = w->data + bytes;
    if (!n || !tested.multiply_gated_bf16)
        return;
    memset(got, 0, sizeof got);
    memset(expected, 0, sizeof expected);
    tested.multiply_gated_bf16(&first, &second, (range){PANEL, n}, x, n_x, got, scratch);
    tested.multiply_bf16(&first, (range){0, n}, x, n_x, gate, STORE_FLOAT, scratch);
    tested.multiply_bf16(&second, (range){0, n}, x, n_x, up, STORE_FLOAT, scratch);
    tested.swiglu(gate, up, n_x * n);
    for (int m = 0; m < n_x; m++) {
        tested.round_row(gate + m * n, n, m, expected);
        for (int64_t i = PANEL; i < n; i++) {
            const int64_t at = m / PANEL * PANEL * n + i / PAIR * PAIR * PANEL + m % PANEL * PAIR;
            report("multiply_gated_bf16", got[at + i % PAIR] == expected[at + i % PAIR]);
        }
    }
    const int64_t end = round_up(n_x, PANEL) * n;
    report("memory after multiply_gated_bf16",
           memcmp(got + end, expected + end, sizeof got - sizeof *got * (size_t)end) == 0);
}

/* Multiply `n_x` rows, rounded, with a matrix, whose weights are the numbers of `floats`. */
static void compare_bf16_product(const matrix *w, const float *floats, int n_x, int is_whole,
                                 float tolerance)
{
    static float x[BF16_NUMBERS], got[BF16_X * BF16_MOST_ROWS], expected[BF16_X * BF16_MOST_ROWS];
    static uint16_t rounded[BF16_NUMBERS + MAX_TILE * BF16_COLUMNS];
    const int64_t n = w->n_columns;
    const int mode = is_whole ? ACCUMULATE : STORE_FLOAT;
    if (!tested.takes_bf16(w))
        return;
    is_whole ? fill_whole(x, n_x * n, 60) : fill(x, n_x * n);
    if (!is_whole)
        x[0] = 1e30f, x[n_x * n - 1] = -1 - 0x1p-8f; /* a tie */
    compare_rounding(x, n_x * n);
    for (int m = 0; m < n_x; m++)
        tested.round_row(x + m * n, n, m, rounded);
    for (int64_t i = 0; i < n_x * n; i++)
        x[i] = bf16_to_float(to_bf16(x[i]));
    const matrix same = {WEIGHT_F32, {0}, w->n_rows, n, (const void *)floats};
    fill_whole(got, BF16_X * BF16_MOST_ROWS, 60);
    memcpy(expected, got, sizeof got);
    void *scratch = malloc((size_t)tested.bf16_scratch_bytes + 1);
    tested.multiply_bf16(w, (range){PANEL, w->n_rows}, rounded, n_x, got, mode, scratch);
    compare_gated_bf16(w, rounded, n_x, scratch);
    free(scratch);
    portable.multiply_floats(&same, (range){PANEL, w->n_rows}, x, n_x, expected, mode);
    for (int m = 0; m < n_x; m++) /* the first row has large numbers */
        compare("multiply_bf16", got + m * w->n_rows, expected + m * w->n_rows, w->n_rows,
                tolerance);
    const int64_t end = n_x * w->n_rows;
    report("memory after multiply_bf16",
           memcmp(got + end, expected + end, sizeof got - sizeof *got * (size_t)end) == 0);
}

/* Compare with the products of floats of 16 bits. */
static void compare_bf16_product_of(int type, int64_t columns, int n_x, int is_whole)
{
    static float floats[BF16_ROWS * BF16_COLUMNS];
    static uint16_t halves[BF16_ROWS * BF16_COLUMNS];
    is_whole ? fill_whole(floats, BF16_ROWS * columns, 60) : fill(floats, BF16_ROWS * columns);
    for (int64_t j = 0; j < BF16_ROWS * columns; j++) {
        halves[j] = type == WEIGHT_F16 ? to_half(floats[j]) : to_bf16(floats[j]);
        floats[j] = type == WEIGHT_F16 ? load_half(halves + j) : bf16_to_float(halves[j]);
    }
    const matrix w = {type, {0}, BF16_ROWS, columns, (void *)halves};
    compare_bf16_product(&w, floats, n_x, is_whole, is_whole ? 0 : 1e-5f);
}

/* The same for any number of columns, and for one that fills tiles. */
static void compare_bf16_products(void)
{
    static const int sizes[] = {1, 2, 3, 4, 5, 6, 7, 8, 11, 13, 18, 32, 47, 51, 69, BF16_X};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int type = WEIGHT_BF16; type <= WEIGHT_F16; type++)
            for (int is_whole = 0; is_whole < 2; is_whole++) {
                const int n_x = sizes[i], is_few = n_x < 18 || n_x == BF16_X;
                const int64_t all = n_x % 2 ? BF16_COLUMNS : BF16_COLUMNS - 25;
                const int64_t columns = is_few ? 1 + random_below(130) : all;
                compare_bf16_product_of(type, columns, n_x, is_whole);
                compare_bf16_product_of(type, round_up(columns, 32), n_x, is_whole);
            }
}

/* The same with packed weights, which are rounded to bfloat16 too. */
static void compare_packed_bf16_product(packed_layout layout, int64_t n_rows, int64_t columns,
                                        int n_x, int is_whole)
{
    enum { MOST = BF16_MOST_ROWS * 256 }; /* numbers */
    static uint8_t panels[2 * MOST + MOST / 2];
    static float floats[MOST];
    static uint16_t halves[BF16_COLUMNS];
    const matrix w = {PACKED, layout, n_rows, columns, panels};
    fill_panels(&w, -1, is_whole, panels);
    for (int row = 0; row < n_rows; row++) {
        portable.dequantize_row(&w, row, halves, 1);
        for (int64_t i = 0; i < columns; i++)
            floats[row * columns + i] = bf16_to_float(halves[i]);
    }
    /* A weight half-way between two numbers may be rounded either way. */
    compare_bf16_product(&w, floats, n_x, is_whole, layout.has_mins ? 1e-3f : 1e-5f);
}

static void compare_packed_bf16_products(packed_layout layout)
{
    const int64_t columns = layout.groups_per_super_block ? 768 : 800;
    for (int n_x = 32; n_x <= 49; n_x += 17)
        for (int is_whole = 0; is_whole < 2; is_whole++)
            compare_packed_bf16_product(layout, 2 * PANEL + 5, columns, n_x, is_whole);
    compare_packed_bf16_product(layout, BF16_MOST_ROWS, 256, 18, 1);
}

#endif
