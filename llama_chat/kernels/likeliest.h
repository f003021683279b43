/* The most likely tokens. */

#ifndef LIKELIEST_H
#define LIKELIEST_H

#include <stdint.h>

#include "compiler.h"

/* Logits are compared in chunks. The first, the 17th, the 33rd of a chunk and so on are a block, the
 * second, the 18th and so on the next: vectors of them have the largest of each block in a lane. */
enum { BLOCKS_OF_CHUNK = 16, LOGIT_CHUNK = 32 * BLOCKS_OF_CHUNK };

/* Logits whose exponentials are added in float32; whole chunks. */
enum { SUMMED_LOGITS = 2 * LOGIT_CHUNK };

/* Number of blocks of n logits; some of the last chunk may be empty. */
INLINE int64_t logit_blocks(int64_t n)
{
    return (n + LOGIT_CHUNK - 1) / LOGIT_CHUNK * BLOCKS_OF_CHUNK;
}

#endif
