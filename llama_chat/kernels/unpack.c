/* Packed weights back to floats, for products with many rows, which the matrix units take. */

#include "packed.h"

INLINE void unpack_row(const packed_matrix *w, int64_t row, void *to, int narrow, int bits,
                       int group)
{
    int64_t groups = n_groups(w);
    const uint8_t *quants = w->quants + row * (w->n_columns * bits / 8);
    for (int64_t g = 0; g < groups; g++, quants += group * bits / 8) {
        float scale = half_to_float(w->scales[row * groups + g]), values[32];
        float min = w->mins ? half_to_float(w->mins[row * groups + g]) : 0;
        int zero = bits == 4 && !w->mins ? 8 : 0, half = group / 2;
        if (bits == 8)
            for (int i = 0; i < group; i++)
                values[i] = scale * (float)(int8_t)quants[i] + min;
        else
            for (int i = 0; i < half; i++) {
                values[i] = scale * (float)((quants[i] & 15) - zero) + min;
                values[i + half] = scale * (float)((quants[i] >> 4) - zero) + min;
            }
        if (narrow)
            for (int i = 0; i < group; i++)
                ((uint16_t *)to)[g * group + i] = finite_to_bfloat16(values[i]);
        else
            memcpy((float *)to + g * group, values, sizeof(float) * (size_t)group);
    }
}

#define UNPACK(target, name)                                                                       \
    target static void name(const packed_matrix *w, int64_t row, void *to, int narrow)             \
    {                                                                                              \
        if (w->bits == 4)                                                                          \
            w->group == 16 ? unpack_row(w, row, to, narrow, 4, 16)                                 \
                           : unpack_row(w, row, to, narrow, 4, 32);                                \
        else                                                                                       \
            w->group == 16 ? unpack_row(w, row, to, narrow, 8, 16)                                 \
                           : unpack_row(w, row, to, narrow, 8, 32);                                \
    }

UNPACK(, unpack_portable)
#if X86
UNPACK(TARGET_AVX2, unpack_avx2)
UNPACK(TARGET_AVX512, unpack_avx512)
#endif

static void (*const UNPACKERS[])(const packed_matrix *, int64_t, void *, int) = {
    unpack_portable,
#if X86
    unpack_avx2,
    unpack_avx512,
#endif
};

/* The rows of the weights as bfloat16 (`narrow`) or float32, one behind the other. */
void unpack(const packed_matrix *w, void *to, int narrow, int level)
{
    int64_t row_bytes = w->n_columns * (narrow ? 2 : 4);
#pragma omp parallel for schedule(static) if (w->n_rows * w->n_columns > 65536)
    for (int64_t row = 0; row < w->n_rows; row++)
        UNPACKERS[level](w, row, (char *)to + row * row_bytes, narrow);
}
