/* Work of a phase, between two barriers, that a team divides while it runs.
 *
 * Each thread has a share of consecutive items, of which it takes parts from the front: memory is
 * then read as one stream. A thread without any left takes parts from the back of another's share,
 * because cores differ in speed, and other programs use them, too.
 */

#ifndef WORK_SHARES_H
#define WORK_SHARES_H

#include <stdatomic.h>

#include "threads.h"

/* Items of one thread's share that nobody has taken yet. Those of an earlier phase count as the
 * whole share: whoever comes first opens it, so that a thread that is late holds up nobody. */
typedef struct {
    _Alignas(CACHE_LINE) _Atomic uint64_t left; /* phase, start and end: see pack_left() */
} work_share;

enum { ITEM_BITS = 24, PARTS_OF_REST = 4 };

INLINE uint64_t pack_left(uint64_t phase, range left)
{
    return phase << 2 * ITEM_BITS | (uint64_t)left.start << ITEM_BITS | (uint64_t)left.end;
}

INLINE range unpack_left(uint64_t packed)
{
    const uint64_t mask = (1 << ITEM_BITS) - 1;
    return (range){(int64_t)(packed >> ITEM_BITS & mask), (int64_t)(packed & mask)};
}

/* The phase in which a thread of the team is. Phases are numbered from 1 on; the shares are zero
 * before the first. */
typedef struct {
    team_member me;
    work_share *shares; /* one for each thread */
    uint64_t number;
} team_phase;

/* Wait until all threads have done their work of this phase. */
INLINE void end_phase(team_phase *phase)
{
    wait_for_team();
    phase->number++;
}

/* Take a part of the `n` items of a phase; return 0 if none are left.
 *
 * A part has a quarter of what is left of a share, and from `min` to `max` items: the last ones are
 * small, so that all threads end at about the same time. */
INLINE int take_part(const team_phase *phase, int64_t n, int64_t min, int64_t max, range *part)
{
    const team_member me = phase->me;
    for (int i = 0; i < me.n_threads; i++) {
        const team_member owner = {(me.index + i) % me.n_threads, me.n_threads};
        _Atomic uint64_t *share = &phase->shares[owner.index].left;
        uint64_t packed = atomic_load_explicit(share, memory_order_relaxed);
        for (;;) {
            range left = packed >> 2 * ITEM_BITS == phase->number ? unpack_left(packed)
                                                                  : share_of(n, owner);
            const int64_t n_left = left.end - left.start;
            if (n_left <= 0)
                break;
            int64_t n_taken = n_left / PARTS_OF_REST;
            n_taken = n_taken < min ? min : n_taken > max ? max : n_taken;
            n_taken = n_taken < n_left ? n_taken : n_left;
            if (owner.index == me.index) {
                *part = (range){left.start, left.start + n_taken};
                left.start = part->end;
            } else {
                *part = (range){left.end - n_taken, left.end};
                left.end = part->start;
            }
            const uint64_t rest = pack_left(phase->number, left);
            if (atomic_compare_exchange_weak_explicit(share, &packed, rest, memory_order_relaxed,
                                                      memory_order_relaxed))
                return 1;
        }
    }
    return 0;
}

#endif
