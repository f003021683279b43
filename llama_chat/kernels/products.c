/* Products of packed weights with rows of activations. */

#include "tiles.h"

/* Bytes of rounded rows that stay in a core's own cache while all panels pass by. */
enum { TILE_BLOCK = 1 << 19 };

INLINE void store(const float *values, int n, void *y, int64_t at, int how)
{
    for (int i = 0; i < n; i++)
        if (how == AS_BFLOAT16)
            ((uint16_t *)y)[at + i] = to_bfloat16(values[i]);
        else if (how == ADDED)
            ((float *)y)[at + i] += values[i];
        else
            ((float *)y)[at + i] = values[i];
}

/* As many rows of activations as stay in a core's own cache while all panels pass by. */
INLINE int block_rows(const packed_matrix *w, int level)
{
    const int tile = largest_tile(level);
    int64_t n_tiles = TILE_BLOCK / (tile * rounded_bytes(w->n_columns, w->group));
    return tile * (int)(n_tiles > 1 ? n_tiles : 1);
}

void multiply_panels(const packed_matrix *w, const uint8_t *rounded, int n_x, void *y, int how,
                     int64_t first, int64_t end, int level)
{
    const int64_t row_bytes = rounded_bytes(w->n_columns, w->group);
    const int block = block_rows(w, level);
    dot_function *const *dots = dots_of(w, level);
    for (int start = 0; start < n_x; start += block)
        for (int64_t panel = first; panel < end; panel++) {
            const uint8_t *weights = w->panels + panel * panel_bytes(w);
            const int64_t row = panel * PANEL, n_rows = w->n_rows - row;
            for (int m = start; m < start + block && m < n_x;) {
                const int size = index_of_size(n_x - m, level), n = SIZES[size];
                const uint8_t *tile = rounded + m * row_bytes;
                const int64_t at = m * w->n_rows + row;
                m += n;
                if (n_rows >= PANEL && how == AS_FLOATS) {
                    dots[size](weights, n_groups(w), tile, (float *)y + at, w->n_rows);
                    continue;
                }
                float out[MAX_TILE * PANEL];
                dots[size](weights, n_groups(w), tile, out, PANEL);
                for (int i = 0; i < n; i++)
                    if (n_rows >= PANEL) /* known to the compiler */
                        store(out + i * PANEL, PANEL, y, at + i * w->n_rows, how);
                    else /* what is behind the end, in the last panel, is left out */
                        store(out + i * PANEL, (int)n_rows, y, at + i * w->n_rows, how);
            }
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
            multiply_panels(w, scratch, n_x, y, narrow ? AS_BFLOAT16 : AS_FLOATS,
                            n_panels(w) * step / steps, n_panels(w) * (step + 1) / steps, level);
    }
}
