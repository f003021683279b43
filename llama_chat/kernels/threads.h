/* Teams of OpenMP threads, or of a single one where the compiler has no OpenMP. */

#ifndef THREADS_H
#define THREADS_H

#include <stdint.h>

#include "compiler.h"

#ifdef _OPENMP
#include <omp.h>
#endif

/* The calling thread in its team. A team may be smaller than requested, so shares of work are
 * computed from `n_threads` here alone. */
typedef struct {
    int index, n_threads;
} team_member;

INLINE team_member this_thread(void)
{
#ifdef _OPENMP
    return (team_member){omp_get_thread_num(), omp_get_num_threads()};
#else
    return (team_member){0, 1};
#endif
}

/* Wait for all threads of the team (barrier). */
INLINE void wait_for_team(void)
{
#ifdef _OPENMP
#pragma omp barrier
#endif
}

typedef struct {
    int64_t start, end;
} range;

/* This thread's share of `n` items. */
INLINE range share_of(int64_t n, team_member me)
{
    return (range){n * me.index / me.n_threads, n * (me.index + 1) / me.n_threads};
}

#endif
