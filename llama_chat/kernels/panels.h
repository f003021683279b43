/* Source of a packed matrix. */

#ifndef PANELS_H
#define PANELS_H

#include <stdint.h>

/* A tensor (n_rows, n_groups, ...) in a file, possibly interleaved with other fields. */
typedef struct {
    const uint8_t *data;
    int64_t row_stride, group_stride; /* in bytes; of super-block scales, from one to the next */
} tensor_view;

/* The tensors of a PackedWeight; those that its layout lacks are empty. */
typedef struct {
    tensor_view quants, scales, mins, super_scales, super_mins;
} unpacked_matrix;

#endif
