/* Sums of four products of bytes in one instruction, vpdpbusd of x86-64.
 *
 * Before including this, the level defines sum_of_products(sums, unsigned_bytes, signed_bytes).
 */

#ifndef VNNI_H
#define VNNI_H

#include "x86_quants.h"

#define W8_IS_SIGNED 0

INLINE void add_products(integer_vector sums[][MAX_VECTORS], const byte_vector *low,
                         const byte_vector *high, const int8_t *x, int n, int n_vectors, int bits)
{
    (void)bits;
    for (int half = 0; half < 2; half++)
        for (int m = 0; m < n; m++) {
            const integer_vector four = broadcast_quants(x + 8 * m + 4 * half);
            for (int v = 0; v < n_vectors; v++)
                sums[m][v] = sum_of_products(sums[m][v], half ? high[v] : low[v], four);
        }
}

#include "panel_product.h"

#endif
