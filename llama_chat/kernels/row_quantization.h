/* Quantization of rows of activations to 8 bits, for any instruction set. */

#ifndef ROW_QUANTIZATION_H
#define ROW_QUANTIZATION_H

#include <math.h>

#include "activation_tile.h"

/* The scale of a group, and its inverse; the scale is NaN if a value is NaN or infinite. */
typedef struct {
    float scale, inverse;
} group_scale;

INLINE group_scale scale_of(const float *values, int group)
{
    float max = 0, not_finite = 0;
#pragma omp simd reduction(max : max) reduction(+ : not_finite)
    for (int i = 0; i < group; i++) {
        float magnitude = fabsf(values[i]);
        max = magnitude > max ? magnitude : max;
        not_finite += values[i] * 0; /* NaN if the value is NaN or infinite, else 0 */
    }
    return (group_scale){max / 127 + not_finite, quantizing_factor(max)};
}

INLINE void quantize_groups(const void *x, int is_bf16, int64_t n_columns, int group, int n, int m,
                            uint8_t *tile)
{
    for (int64_t g = 0; g < n_columns / group; g++) {
        float values[MAX_GROUP];
        int8_t quants[MAX_GROUP];
        for (int i = 0; i < group; i++)
            values[i] = is_bf16 ? bf16_to_float(((const uint16_t *)x)[g * group + i])
                                : ((const float *)x)[g * group + i];
        const group_scale by = scale_of(values, group);
        uint32_t sum = 0; /* wraps around for what is no number */
#pragma omp simd reduction(+ : sum)
        for (int i = 0; i < group; i++) {
            int32_t quant = rounded_integer(values[i] * by.inverse + ROUNDING);
            quants[i] = (int8_t)quant;
            sum += (uint32_t)quant;
        }
        uint8_t *to = tile + g * n * tile_group_bytes(group);
        for (int step = 0; step < group / 8; step++) {
            memcpy(to + 8 * (step * n + m), quants + 4 * step, 4);
            memcpy(to + 8 * (step * n + m) + 4, quants + group / 2 + 4 * step, 4);
        }
        store_row_numbers((float *)(to + n * group), group, n, m, by.scale, (int32_t)sum);
    }
}

INLINE void errors_of_groups(const float *x, int64_t n_columns, int group, float *error)
{
    for (int64_t g = 0; g < n_columns; g += group) {
        const group_scale by = scale_of(x + g, group);
        for (int i = 0; i < group; i++)
            error[g + i] = x[g + i] - by.scale * (x[g + i] * by.inverse + ROUNDING - ROUNDING);
    }
}

/* Instances of both for every group and type. */

static void quantize_row(const void *x, int is_bf16, int64_t n_columns, int group, int n, int m,
                         uint8_t *tile)
{
    if (is_bf16)
        group == 16 ? quantize_groups(x, 1, n_columns, 16, n, m, tile)
                    : quantize_groups(x, 1, n_columns, 32, n, m, tile);
    else
        group == 16 ? quantize_groups(x, 0, n_columns, 16, n, m, tile)
                    : quantize_groups(x, 0, n_columns, 32, n, m, tile);
}

static void quantization_error(const float *x, int64_t n_columns, int group, float *error)
{
    group == 16 ? errors_of_groups(x, n_columns, 16, error)
                : errors_of_groups(x, n_columns, 32, error);
}

#endif
