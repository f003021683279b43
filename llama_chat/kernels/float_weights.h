/* Loading of weights in floats, widened to float32, for any instruction set.
 *
 * Before including this, the level defines load_f16(const uint16_t *), which loads LANES numbers.
 */

#ifndef FLOAT_WEIGHTS_H
#define FLOAT_WEIGHTS_H

#include "matrix.h"
#include "vectors.h"

INLINE vector load_weights(const uint8_t *row, int64_t at, int type)
{
    row += at * float_bytes(type);
    if (type == WEIGHT_F32)
        return *(const vector *)row;
    return type == WEIGHT_BF16 ? load_bf16((const uint16_t *)row) : load_f16((const uint16_t *)row);
}

/* Load the last `n` < LANES numbers of a row, and zeros. */
INLINE vector load_last_weights(const uint8_t *row, int64_t at, int type, int64_t n)
{
    uint8_t padded[4 * LANES] = {0};
    memcpy(padded, row + at * float_bytes(type), (size_t)(n * float_bytes(type)));
    return load_weights(padded, 0, type);
}

#endif
