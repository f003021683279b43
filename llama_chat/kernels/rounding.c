/* Rounding rows of activations to 8 bits. */

#include <math.h>

#include "tiles.h"

int tile_size(int n_left, int level) { return SIZES[index_of_size(n_left, level)]; }

int largest_tile(int level) { return SIZES[N_SIZES[level] - 1]; }

int64_t rounded_bytes(int64_t n_columns, int group)
{
    return n_columns / group * group_bytes(group);
}

/* What a group is divided by, and 1 over it; no number if one of its values is none. */
typedef struct {
    float step, inverse;
} rounding;

INLINE rounding rounding_of(const float *values, int group)
{
    float largest = 0, nothing = 0;
#pragma omp simd reduction(max : largest) reduction(+ : nothing)
    for (int i = 0; i < group; i++) {
        float magnitude = fabsf(values[i]);
        largest = magnitude > largest ? magnitude : largest;
        nothing += values[i] * 0; /* which is no number if the value is none, or infinite */
    }
    return (rounding){largest / 127 + nothing, largest > 0 ? 127 / largest : 0};
}

/* One row into its place among the `n` of a tile. */
INLINE void round_row(const void *x, int narrow, int64_t n_columns, int group, int n, int m,
                      uint8_t *tile)
{
    for (int64_t g = 0; g < n_columns / group; g++) {
        float values[MAX_GROUP];
        int8_t quants[MAX_GROUP];
        for (int i = 0; i < group; i++)
            values[i] = narrow ? bfloat16_to_float(((const uint16_t *)x)[g * group + i])
                               : ((const float *)x)[g * group + i];
        const rounding by = rounding_of(values, group);
        int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int i = 0; i < group; i++) {
            int32_t rounded = rounded_part(values[i] * by.inverse + ROUNDING);
            quants[i] = (int8_t)rounded;
            sum += rounded;
        }
        uint8_t *to = tile + g * n * group_bytes(group);
        for (int c = 0; c < group / 4; c++)
            memcpy(to + 4 * (c * n + m), quants + 4 * c, 4);
        float *floats = (float *)(to + n * group);
        floats[m] = by.step;
        floats[n + m] = by.step * (float)sum;
        ((int32_t *)floats)[2 * n + m] = -8 * sum;
    }
}

INLINE void remainder_of(const float *x, int64_t n_columns, int group, float *to)
{
    for (int64_t g = 0; g < n_columns; g += group) {
        const rounding by = rounding_of(x + g, group);
        for (int i = 0; i < group; i++)
            to[g + i] = x[g + i] - by.step * (x[g + i] * by.inverse + ROUNDING - ROUNDING);
    }
}

#define ROUND(target, level)                                                                       \
    target static void round_##level(const void *x, int narrow, int64_t n_columns, int group,      \
                                     int n, int m, uint8_t *tile)                                  \
    {                                                                                              \
        if (narrow)                                                                                \
            group == 16 ? round_row(x, 1, n_columns, 16, n, m, tile)                               \
                        : round_row(x, 1, n_columns, 32, n, m, tile);                              \
        else                                                                                       \
            group == 16 ? round_row(x, 0, n_columns, 16, n, m, tile)                               \
                        : round_row(x, 0, n_columns, 32, n, m, tile);                              \
    }                                                                                              \
    target static void remainder_##level(const float *x, int64_t n_columns, int group, float *to)  \
    {                                                                                              \
        group == 16 ? remainder_of(x, n_columns, 16, to) : remainder_of(x, n_columns, 32, to);     \
    }

FOR_LEVELS(ROUND)
static void (*const REMAINDERS[])(const float *, int64_t, int, float *) = BY_LEVEL(remainder);
static void (*const ROUNDERS[])(const void *, int, int64_t, int, int, int, uint8_t *) =
    BY_LEVEL(round);

void round_tile(const void *x, int narrow, int64_t n_columns, int group, int n, uint8_t *tile,
                int level)
{
    const int64_t row_bytes = n_columns * (narrow ? 2 : 4);
    for (int m = 0; m < n; m++)
        ROUNDERS[level]((const char *)x + m * row_bytes, narrow, n_columns, group, n, m, tile);
}

void take_remainder(const float *x, int64_t n_columns, int group, float *to, int level)
{
    REMAINDERS[level](x, n_columns, group, to);
}
