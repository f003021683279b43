/* Matrices of weights (n_rows, n_columns): packed, or floats as a checkpoint stores them. */

#ifndef MATRIX_H
#define MATRIX_H

#include "packed.h"

/* Types of weights. Floats are rows one after the other, which may be mapped from a file. */
enum { PACKED = 0, WEIGHT_F32 = 1, WEIGHT_BF16 = 2, WEIGHT_F16 = 3 };

typedef struct {
    int32_t type;
    packed_layout layout; /* of PACKED */
    int64_t n_rows, n_columns;
    const uint8_t *data; /* panels of PACKED, else rows of floats */
} matrix;

INLINE int64_t n_groups(const matrix *w) { return w->n_columns / w->layout.group; }

INLINE int64_t panel_bytes(const matrix *w)
{
    return panel_bytes_of(w->layout, n_groups(w));
}

INLINE int64_t n_panels(const matrix *w) { return (w->n_rows + PANEL - 1) / PANEL; }

INLINE int64_t float_bytes(int type) { return type == WEIGHT_F32 ? 4 : 2; }

/* Bytes of a row of weights. */
INLINE int64_t weight_row_bytes(const matrix *w)
{
    return w->type == PACKED ? panel_bytes(w) / PANEL : w->n_columns * float_bytes(w->type);
}

#endif
