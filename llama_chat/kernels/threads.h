/* Teams of threads: of OpenMP, or of POSIX threads where the compiler has none; see team.c. */

#ifndef THREADS_H
#define THREADS_H

#include <stdint.h>

#include "compiler.h"

/* The calling thread in its team. A team may be smaller than requested, so shares of work must be
 * computed from this `n_threads`. */
typedef struct {
    int index, n_threads;
} team_member;

/* Most threads of a product or a search that is called by itself: a limit on their memory, which is
 * on the stack. */
enum { MAX_CALLED_THREADS = 1024 };

typedef void team_function(team_member me, void *argument);

/* Let a team of `n_threads`, or fewer if the system provides fewer, call `function`; the calling
 * thread is member 0. Returns once all have returned. */
void run_team(int n_threads, team_function *function, void *argument);

/* Wait for all threads of the team (barrier). */
void wait_for_team(void);

/* True if the threads are those of OpenMP. */
int has_openmp(void);

typedef struct {
    int64_t start, end;
} range;

/* This thread's share of `n` items. */
INLINE range share_of(int64_t n, team_member me)
{
    return (range){n * me.index / me.n_threads, n * (me.index + 1) / me.n_threads};
}

#endif
