/* Writing of panels, a span of columns at a time. */

#ifndef PANEL_SPAN_H
#define PANEL_SPAN_H

#include "matrix.h"

/* Four neighbouring bytes of each row of a panel. */
typedef uint32_t chunk __attribute__((vector_size(CHUNK)));

enum { MAX_SPAN_GROUPS = 16, MAX_SPAN_CHUNKS = MAX_SPAN_GROUPS * 3 /* of W6 */ };

/* A super-block of columns, or a group in layouts without, of the rows of a panel. */
typedef struct {
    chunk quants[MAX_SPAN_CHUNKS]; /* of one group after the other; W8 as q */
    uint16_t scales[PANEL], mins[PANEL]; /* float16, of the whole span */
    int8_t group_scales[MAX_SPAN_GROUPS][PANEL], group_mins[MAX_SPAN_GROUPS][PANEL];
} panel_span;

INLINE int groups_per_span(packed_layout layout)
{
    return layout.groups_per_super_block ? layout.groups_per_super_block : 1;
}

INLINE int chunks_per_group(packed_layout layout) { return (int)(quant_bytes(layout) / CHUNK); }

/* Rows of a panel, which are fewer than sixteen in the last one. */
INLINE int rows_of_panel(const matrix *w, int64_t panel)
{
    return (int)min(PANEL, w->n_rows - panel * PANEL);
}

INLINE uint8_t *append_bytes(uint8_t *to, const void *from, size_t size)
{
    memcpy(to, from, size);
    return to + size;
}

INLINE uint8_t *append_scales(uint8_t *to, packed_layout layout, const void *scales,
                              const void *mins, size_t size)
{
    to = append_bytes(to, scales, size);
    return layout.has_mins ? append_bytes(to, mins, size) : to;
}

/* Append a span to a panel. */
INLINE uint8_t *append_span(uint8_t *to, packed_layout layout, const panel_span *span)
{
    const chunk flip = (chunk){0} + (layout.bits == 8 ? 0x80808080 : 0), *quants = span->quants;
    if (layout.groups_per_super_block)
        to = append_scales(to, layout, span->scales, span->mins, sizeof span->scales);
    for (int g = 0; g < groups_per_span(layout); g++) {
        for (int i = 0; i < chunks_per_group(layout); i++) {
            const chunk stored = *quants++ ^ flip;
            to = append_bytes(to, &stored, CHUNK);
        }
        if (layout.groups_per_super_block)
            to = append_scales(to, layout, span->group_scales[g], span->group_mins[g], PANEL);
        else
            to = append_scales(to, layout, span->scales, span->mins, sizeof span->scales);
    }
    return to;
}

#endif
