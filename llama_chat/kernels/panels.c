/* Packed matrices from rows into panels, and back to floats. */

#include "packed.h"

/* Numbers of a matrix that lie elsewhere, perhaps between other things, as in the file. */
typedef struct {
    const uint8_t *first;
    int64_t row, group; /* bytes from one row to the next, and from one group or span to the next */
} packed_part;

/* Those that a matrix has none of are NULL. */
typedef struct {
    packed_part quants, scales, mins, scale_steps, min_steps;
} packed_rows;

/* `size` bytes of each row of a panel, side by side; zeros where there is no row. */
INLINE uint8_t *gather(const packed_matrix *w, const packed_part *from, int64_t panel, int64_t g,
                       int64_t offset, size_t size, uint8_t *to)
{
    const uint8_t *at = from->first + panel * PANEL * from->row + g * from->group + offset;
    const int64_t step = from->row, left = w->n_rows - panel * PANEL;
    if (left >= PANEL)
        for (size_t r = 0; r < PANEL; r++, at += step)
            memcpy(to + r * size, at, size);
    else {
        memset(to, 0, PANEL * size);
        for (size_t r = 0; r < (size_t)left; r++, at += step)
            memcpy(to + r * size, at, size);
    }
    return to + PANEL * size;
}

INLINE uint8_t *gather_numbers(const packed_matrix *w, const packed_part *scales,
                               const packed_part *mins, int64_t panel, int64_t g,
                               size_t size, uint8_t *to)
{
    to = gather(w, scales, panel, g, 0, size, to);
    return w->has_mins ? gather(w, mins, panel, g, 0, size, to) : to;
}

/* Write the panels of `w`, whose rows are in `from`, each group as PackedWeight has it. */
void pack_panels(const packed_matrix *w, const packed_rows *from, uint8_t *to)
{
    const int64_t bytes = quant_bytes(w->bits, w->group);
    for (int64_t p = 0; p < n_panels(w); p++)
        for (int64_t g = 0; g < n_groups(w); g++) {
            if (step_bytes(g, w->has_mins, w->span))
                to = gather_numbers(w, &from->scale_steps, &from->min_steps, p, g / w->span, 2, to);
            for (int64_t at = 0; at < bytes; at += CHUNK) {
                uint8_t *chunk = to;
                to = gather(w, &from->quants, p, g, at / PANEL, 4, to);
                if (w->bits == 8)
                    for (int i = 0; i < CHUNK; i++)
                        chunk[i] ^= 0x80;
            }
            if (w->span)
                to = gather_numbers(w, &from->scales, &from->mins, p, g, 1, to);
            else
                to = gather_numbers(w, &from->scales, &from->mins, p, g, 2, to);
        }
}

INLINE void unpack_row(const packed_matrix *w, int64_t row, void *to, int narrow, int bits,
                       int group, int has_mins, int span)
{
    const int64_t bytes = quant_bytes(bits, group), lane = row % PANEL;
    const int half = group / 2, quarter = group / 4;
    const uint8_t *block = w->panels + row / PANEL * panel_bytes(w);
    const int zero = bits == 8 ? 128 : has_mins ? 0 : 1 << (bits - 1);
    float step = 1, min_step = 1;
    for (int64_t g = 0; g < n_groups(w); g++, block += block_bytes(bits, group, has_mins, span)) {
        uint8_t stored[MAX_GROUP], quants[MAX_GROUP];
        float values[MAX_GROUP], scale, min = 0;
        if (step_bytes(g, has_mins, span)) {
            step = half_at(block + 2 * lane);
            min_step = has_mins ? half_at(block + 2 * (PANEL + lane)) : 0;
            block += step_bytes(g, has_mins, span);
        }
        const uint8_t *numbers = block + bytes;
        if (span) {
            scale = step * (float)((const int8_t *)numbers)[lane];
            min = has_mins ? min_step * (float)((const int8_t *)numbers)[PANEL + lane] : 0;
        } else {
            scale = half_at(numbers + 2 * lane);
            min = has_mins ? half_at(numbers + 2 * (PANEL + lane)) : 0;
        }
        for (int64_t c = 0; c < bytes / CHUNK; c++)
            memcpy(stored + 4 * c, block + c * CHUNK + 4 * lane, 4);
        for (int i = 0; i < (bits == 8 ? group : half); i++)
            quants[i] = bits == 8 ? stored[i] : stored[i] & 15;
        if (bits != 8)
            for (int i = 0; i < half; i++)
                quants[half + i] = stored[i] >> 4;
        if (bits == 6)
            for (int upper = 0; upper < 4; upper++)
                for (int i = 0; i < quarter; i++)
                    quants[upper * quarter + i] |= (stored[half + i] >> 2 * upper & 3) << 4;
        for (int i = 0; i < group; i++)
            values[i] = scale * (float)(quants[i] - zero) + min;
        if (narrow)
            for (int i = 0; i < group; i++)
                ((uint16_t *)to)[g * group + i] = finite_to_bfloat16(values[i]);
        else
            memcpy((float *)to + g * group, values, sizeof(float) * (size_t)group);
    }
}

#define UNPACK_LAYOUT(bits, group, has_mins, span, ...)                                            \
    if (is_layout(w, bits, group, has_mins, span))                                                 \
        unpack_row(w, row, to, narrow, bits, group, has_mins, span);

#define UNPACK(target, level, ...)                                                                 \
    target static void unpack_##level(const packed_matrix *w, int64_t row, void *to, int narrow)   \
    {                                                                                              \
        FOR_LAYOUTS(UNPACK_LAYOUT, )                                                               \
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
