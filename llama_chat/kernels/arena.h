/* Allocation of consecutive buffers in one piece of memory. */

#ifndef ARENA_H
#define ARENA_H

#include <stddef.h>

#include "numbers.h"

/* An arena without memory only counts bytes, so the same code computes sizes and allocates. */
typedef struct {
    char *memory;
    int64_t used;
} arena;

INLINE void *arena_alloc(arena *a, int64_t n_bytes)
{
    void *allocated = a->memory ? a->memory + a->used : NULL;
    a->used += round_up(n_bytes, CACHE_LINE);
    return allocated;
}

INLINE float *arena_floats(arena *a, int64_t n)
{
    return arena_alloc(a, n * (int64_t)sizeof(float));
}

#endif
