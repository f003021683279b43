/* Packed matrices from rows into panels, and back to floats. */

#include "packed.h"

/* One row of a panel that lies elsewhere, perhaps between other things, as in the file. */
typedef struct {
    const uint8_t *quants, *scales, *mins;             /* of the first row; mins may be NULL */
    int64_t quants_row, quants_group, scales_row, scales_group; /* bytes from one to the next */
    int64_t mins_row, mins_group;
} packed_rows;

/* Write the panels of `w`, whose rows are in `from`, where a group of W4 has byte i for its columns
 * i and i + group / 2, and one of W8 a signed byte for each. */
void pack_panels(const packed_matrix *w, const packed_rows *from, uint8_t *to)
{
    const uint32_t flip = w->bits == 8 ? 0x80808080 : 0;
    const int64_t chunks = quant_bytes(w->bits, w->group) / CHUNK;
    for (int64_t p = 0; p < n_panels(w); p++)
        for (int64_t g = 0; g < n_groups(w); g++) {
            uint8_t *block = to, *numbers = to + chunks * CHUNK;
            for (int64_t r = 0; r < PANEL; r++) {
                int64_t row = p * PANEL + r;
                int present = row < w->n_rows;
                const uint8_t *quants = from->quants + row * from->quants_row + g * from->quants_group;
                for (int64_t c = 0; c < chunks; c++) {
                    uint32_t four = 0;
                    if (present)
                        memcpy(&four, quants + 4 * c, 4);
                    four ^= flip;
                    memcpy(block + c * CHUNK + 4 * r, &four, 4);
                }
                uint16_t scale = 0, min = 0;
                if (present)
                    memcpy(&scale, from->scales + row * from->scales_row + g * from->scales_group, 2);
                memcpy(numbers + 2 * r, &scale, 2);
                if (!w->has_mins)
                    continue;
                if (present)
                    memcpy(&min, from->mins + row * from->mins_row + g * from->mins_group, 2);
                memcpy(numbers + 2 * (PANEL + r), &min, 2);
            }
            to += block_bytes(w->bits, w->group, w->has_mins);
        }
}

INLINE void unpack_row(const packed_matrix *w, int64_t row, void *to, int narrow, int bits,
                       int group)
{
    const int64_t bytes = quant_bytes(bits, group), half = group / 2;
    const uint8_t *block = w->panels + row / PANEL * panel_bytes(w);
    const int64_t lane = row % PANEL;
    for (int64_t g = 0; g < n_groups(w); g++, block += block_bytes(bits, group, w->has_mins)) {
        uint8_t quants[MAX_GROUP];
        float values[MAX_GROUP];
        uint16_t numbers[2] = {0, 0};
        for (int64_t c = 0; c < bytes / CHUNK; c++)
            memcpy(quants + 4 * c, block + c * CHUNK + 4 * lane, 4);
        memcpy(numbers, block + bytes + 2 * lane, 2);
        if (w->has_mins)
            memcpy(numbers + 1, block + bytes + 2 * (PANEL + lane), 2);
        const float scale = half_to_float(numbers[0]), min = half_to_float(numbers[1]);
        const int zero = bits == 8 ? 128 : w->has_mins ? 0 : 8;
        if (bits == 8)
            for (int i = 0; i < group; i++)
                values[i] = scale * (float)(quants[i] - zero) + min;
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

#define UNPACK(target, level)                                                                      \
    target static void unpack_##level(const packed_matrix *w, int64_t row, void *to, int narrow)   \
    {                                                                                              \
        if (w->bits == 4)                                                                          \
            w->group == 16 ? unpack_row(w, row, to, narrow, 4, 16)                                 \
                           : unpack_row(w, row, to, narrow, 4, 32);                                \
        else                                                                                       \
            w->group == 16 ? unpack_row(w, row, to, narrow, 8, 16)                                 \
                           : unpack_row(w, row, to, narrow, 8, 32);                                \
    }

FOR_LEVELS(UNPACK)
static void (*const UNPACKERS[])(const packed_matrix *, int64_t, void *, int) = BY_LEVEL(unpack);

/* The rows `ids` of the weights as bfloat16 (`narrow`) or float32, one behind the other. */
void unpack_rows(const packed_matrix *w, const int64_t *ids, int64_t n, void *to, int narrow,
                 int level)
{
    int64_t row_bytes = w->n_columns * (narrow ? 2 : 4);
#pragma omp parallel for schedule(static) if (n * w->n_columns > 65536)
    for (int64_t i = 0; i < n; i++)
        UNPACKERS[level](w, ids[i], (char *)to + i * row_bytes, narrow);
}
