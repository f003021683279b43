/* Reading of rows of the cache in vectors, for the inner loops of attention.
 *
 * Before including this, the level defines load_f16(const uint16_t *), which loads LANES numbers.
 */

#ifndef ATTENTION_VECTORS_H
#define ATTENTION_VECTORS_H

#include "kv_cache_rows.h"
#include "vectors.h"

/* Accumulator registers of a tile. */
enum { N_SUMS = REGISTERS / 2 };

/* Load LANES numbers of a row, from number `at` on; those of INT8 without their scale. */
INLINE vector load(const char *row, int64_t at, int kind)
{
    row += at * kind_bytes(kind);
    if (kind == FLOAT32)
        return *(const vector *)row;
    if (kind == BFLOAT16)
        return load_bf16((const uint16_t *)row);
    return kind == FLOAT16 ? load_f16((const uint16_t *)row) : load_int8((const int8_t *)row);
}

/* Load one row of a head as floats. */
INLINE void load_row(const char *from, const float *scales, int64_t n, int kind, float *to)
{
    const float scale = kind == INT8 ? *scales : 1;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        *(vector *)(to + i) = load(from, i, kind) * scale;
    if (i < n) { /* the last numbers, padded with zeros */
        char padded[4 * LANES] = {0};
        memcpy(padded, from + i * kind_bytes(kind), (size_t)((n - i) * kind_bytes(kind)));
        const vector last = load(padded, 0, kind) * scale;
        memcpy(to + i, &last, (size_t)(n - i) * sizeof(float));
    }
}

/* Load a row of `n` numbers as floats, padded with zeros to `width`; zeros alone if it is NULL. */
INLINE void load_padded(const char *from, const float *scales, int64_t n, int64_t width, int kind,
                        float *to)
{
    const int64_t n_loaded = from ? n : 0;
    if (from)
        load_row(from, scales, n, kind, to);
    if (n_loaded < width)
        memset(to + n_loaded, 0, sizeof(float) * (size_t)(width - n_loaded));
}

#endif
