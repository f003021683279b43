/* Products of bfloat16 in pairs, where a processor has them: twice as many as of floats.
 *
 * Rows of floats become rows of pairs in place, in their front half. A matrix on the right has the
 * pairs of two of its rows side by side.
 */

#ifndef PAIRS_H
#define PAIRS_H

#include "packed.h"

int has_pairs(void);

/* Round rows (n_rows, width) to pairs (n_rows, width / 2), in place: from one row to the next are
 * `step` numbers, before and after. `width` is a multiple of 16. */
void round_to_pairs(float *rows, int64_t n_rows, int64_t width, int64_t step);

/* c (rows, n) += a (rows, 2 * k) b (2 * k, n), as multiply_floats() does it: a in pairs (rows, k), b
 * in pairs (k, n). */
void multiply_pairs(const uint32_t *a, int64_t a_row, const uint32_t *b, int64_t b_row, float *c,
                    int64_t c_row, int64_t rows, int64_t k, int64_t n);

#endif
