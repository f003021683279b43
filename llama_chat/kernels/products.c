/* Products of packed weights with rows of activations. */

#include "tiles.h"

/* Bytes of rounded rows that stay in a core's own cache while all panels pass by. */
enum { TILE_BLOCK = 1 << 19 };

/* Part of a row of y (…, rows): what is behind its end, in the last panel, is left out. */
INLINE void store(const packed_matrix *w, const float *values, void *y, int narrow, int m,
                  int64_t panel)
{
    const int64_t row = panel * PANEL, at = m * w->n_rows + row;
    const int n = (int)(w->n_rows - row < PANEL ? w->n_rows - row : PANEL);
    uint16_t halves[PANEL];
    if (narrow)
        for (int i = 0; i < PANEL; i++)
            halves[i] = to_bfloat16(values[i]);
    char *to = (char *)y + at * (narrow ? 2 : 4);
    const void *from = narrow ? (const void *)halves : values;
    if (n == PANEL) /* a copy of known size needs no call */
        narrow ? memcpy(to, from, 2 * PANEL) : memcpy(to, from, 4 * PANEL);
    else
        memcpy(to, from, (size_t)n * (narrow ? 2 : 4));
}

/* As many rows of activations as stay in a core's own cache while all panels pass by. */
INLINE int block_rows(const packed_matrix *w, int level)
{
    const int tile = largest_tile(level);
    int64_t n_tiles = TILE_BLOCK / (tile * rounded_bytes(w->n_columns, w->group));
    return tile * (int)(n_tiles > 1 ? n_tiles : 1);
}

void multiply_panels(const packed_matrix *w, const uint8_t *rounded, int n_x, void *y, int narrow,
                     int64_t first, int64_t end, int level)
{
    const int64_t row_bytes = rounded_bytes(w->n_columns, w->group);
    const int block = block_rows(w, level);
    dot_function *const *dots = dots_of(w, level);
    for (int start = 0; start < n_x; start += block)
        for (int64_t panel = first; panel < end; panel++)
            for (int m = start; m < start + block && m < n_x;) {
                float out[MAX_TILE * PANEL];
                int size = index_of_size(n_x - m, level), n = SIZES[size];
                dots[size](w->panels + panel * panel_bytes(w), n_groups(w),
                           rounded + m * row_bytes, out);
                for (int i = 0; i < n; i++)
                    store(w, out + i * PANEL, y, narrow, m + i, panel);
                m += n;
            }
}

/* ---- what Python calls --------------------------------------------------------------------- */

/* The best instruction set of this machine. */
int best_level(void)
{
#if X86
    if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        return AVX512_VNNI;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return AVX2;
#endif
    return PORTABLE;
}

/* y (n_x, rows) = x (n_x, columns) times the weights, transposed.
 *
 * Both are bfloat16 (`narrow`) or float32. `scratch` holds rounded_bytes() for each row of x.
 */
void multiply(const packed_matrix *w, const void *x, int n_x, void *y, int narrow, uint8_t *scratch,
              int level)
{
    const int64_t x_bytes = w->n_columns * (narrow ? 2 : 4);
    const int64_t row_bytes = rounded_bytes(w->n_columns, w->group);
    const int tile = largest_tile(level);
#pragma omp parallel if (n_x * w->n_rows * w->n_columns > 65536)
    {
#pragma omp for schedule(static)
        for (int start = 0; start < n_x; start += tile)
            for (int m = start; m < n_x && m < start + tile;) {
                int n = tile_size(n_x - m, level);
                round_tile((const char *)x + m * x_bytes, narrow, w->n_columns, w->group, n,
                           scratch + m * row_bytes, level);
                m += n;
            }
        const int64_t steps = 8 * (int64_t)omp_get_num_threads();
#pragma omp for schedule(dynamic)
        for (int64_t step = 0; step < steps; step++)
            multiply_panels(w, scratch, n_x, y, narrow, n_panels(w) * step / steps,
                            n_panels(w) * (step + 1) / steps, level);
    }
}
