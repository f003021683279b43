/* Dequantization of packed weights, for any instruction set. */

#ifndef DEQUANTIZATION_H
#define DEQUANTIZATION_H

#include "matrix.h"

/* Unpack the quants of one row of a block from its `stored` bytes. */
INLINE void unpack_quants(const uint8_t *stored, packed_layout layout, uint8_t *quants)
{
    const int half = layout.group / 2, quarter = layout.group / 4;
    for (int i = 0; i < (layout.bits == 8 ? layout.group : half); i++)
        quants[i] = layout.bits == 8 ? stored[i] : stored[i] & 15;
    if (layout.bits != 8)
        for (int i = 0; i < half; i++)
            quants[half + i] = stored[i] >> 4;
    for (int i = 0; i < layout.group && layout.is_iq4; i++)
        quants[i] = IQ4_TABLE[quants[i]];
    for (int i = 0; i < layout.group && layout.bits == 5; i++)
        quants[i] |= (stored[half + i % 4] >> i / 4 & 1) << 4;
    if (layout.bits == 6)
        for (int upper = 0; upper < 4; upper++)
            for (int i = 0; i < quarter; i++)
                quants[upper * quarter + i] |= (stored[half + i] >> 2 * upper & 3) << 4;
}

INLINE void dequantize_groups(const matrix *w, int64_t row, void *to, int is_bf16,
                              packed_layout layout)
{
    const int64_t bytes = quant_bytes(layout), lane = row % PANEL;
    const uint8_t *block = w->data + row / PANEL * panel_bytes(w);
    const int zero = layout.has_mins ? 0 : 1 << (multiplied_bits(layout) - 1);
    float super_scale = 1, super_min = 1;
    for (int64_t g = 0; g < n_groups(w); g++, block += block_bytes(layout)) {
        uint8_t stored[MAX_GROUP], quants[MAX_GROUP];
        float values[MAX_GROUP], scale, min = 0;
        if (begins_super_block(layout, g)) {
            super_scale = load_half(block + 2 * lane);
            super_min = layout.has_mins ? load_half(block + 2 * (PANEL + lane)) : 0;
            block += super_scale_bytes(layout);
        }
        const uint8_t *scales = block + bytes;
        if (layout.groups_per_super_block) {
            scale = super_scale * (float)((const int8_t *)scales)[lane];
            min = layout.has_mins ? super_min * (float)((const int8_t *)scales)[PANEL + lane] : 0;
        } else {
            scale = load_half(scales + 2 * lane);
            min = layout.has_mins ? load_half(scales + 2 * (PANEL + lane)) : 0;
        }
        for (int64_t c = 0; c < bytes / CHUNK; c++)
            memcpy(stored + 4 * c, block + c * CHUNK + 4 * lane, 4);
        unpack_quants(stored, layout, quants);
        for (int i = 0; i < layout.group; i++)
            values[i] = scale * (float)(quants[i] - zero) + min;
        if (is_bf16)
            for (int i = 0; i < layout.group; i++)
                ((uint16_t *)to)[g * layout.group + i] = to_bf16(values[i]);
        else
            memcpy((float *)to + g * layout.group, values,
                   sizeof(float) * (size_t)layout.group);
    }
}

static void dequantize_row(const matrix *w, int64_t row, void *to, int is_bf16)
{
#define DEQUANTIZE(...)                                                                            \
    if (is_layout(w->layout, (packed_layout){__VA_ARGS__}))                                        \
        dequantize_groups(w, row, to, is_bf16, (packed_layout){__VA_ARGS__});
    FOR_LAYOUTS(DEQUANTIZE)
#undef DEQUANTIZE
}

#endif
