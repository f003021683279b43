/* The most likely tokens of a vocabulary, and the sums by which their probabilities are known. */

#include "likeliest.h"

#include <math.h>
#include <stdlib.h>

#include "cpu.h"
#include "threads.h"

/* A logit, or the largest of a block, and its place. */
typedef struct {
    float value;
    int32_t place;
} candidate;

/* True if `a` comes before `b`: it is larger, or as large and earlier. */
INLINE int is_before(candidate a, candidate b)
{
    return a.value > b.value || (a.value == b.value && a.place < b.place);
}

static int compare(const void *a, const void *b)
{
    const candidate left = *(const candidate *)a, right = *(const candidate *)b;
    return is_before(left, right) ? -1 : is_before(right, left);
}

/* Move the first `k` of `n` candidates to the front, in any order (Hoare 1961, Algorithm 65: find). */
static void select_first(candidate *c, int64_t n, int64_t k)
{
    uint32_t random = 1; /* no order of logits makes all pivots bad */
    for (int64_t low = 0, high = n - 1; low < high;) {
        random = random * 1664525u + 1013904223u;
        const candidate pivot = c[low + (int64_t)((random >> 8) % (uint64_t)(high - low + 1))];
        int64_t i = low, j = high;
        while (i <= j) {
            while (is_before(c[i], pivot))
                i++;
            while (is_before(pivot, c[j]))
                j--;
            if (i <= j) {
                const candidate swapped = c[i];
                c[i++] = c[j];
                c[j--] = swapped;
            }
        }
        if (k <= j + 1)
            high = j;
        else if (k > i)
            low = i;
        else
            return;
    }
}

/* Collect the logits that are at least as large as the `k`-th largest maximum of a block; `max` is the
 * largest. */
static int64_t collect(const float *logits, int64_t n, const float *maxima, float max, int64_t k,
                       candidate *found)
{
    const int64_t n_blocks = logit_blocks(n);
    float least = -INFINITY;
    if (k == 1) {
        least = max;
    } else if (n_blocks > k) {
        for (int64_t b = 0; b < n_blocks; b++)
            found[b] = (candidate){maxima[b], (int32_t)b};
        select_first(found, n_blocks, k);
        least = found[0].value;
        for (int64_t b = 1; b < k; b++)
            least = found[b].value < least ? found[b].value : least;
    }
    int64_t n_found = 0;
    for (int64_t b = 0; b < n_blocks; b++) {
        if (maxima[b] < least)
            continue;
        const int64_t start = b / BLOCKS_OF_CHUNK * LOGIT_CHUNK;
        const int64_t end = start + LOGIT_CHUNK < n ? start + LOGIT_CHUNK : n;
        for (int64_t i = start + b % BLOCKS_OF_CHUNK; i < end; i += BLOCKS_OF_CHUNK)
            if (logits[i] >= least)
                found[n_found++] = (candidate){logits[i], (int32_t)i};
    }
    return n_found;
}

/* ---- a pass over all logits ------------------------------------------------------------------- */

/* Sums of exp(x - max) and of exp((x - max) * factor) for some logits. */
typedef struct {
    float plain, scaled;
} exponential_sums;

/* What the threads of find_likeliest() share. */
typedef struct {
    const kernel_set *kernels;
    const float *logits;
    int64_t n;
    float factor;
    float *maxima;          /* of the blocks */
    float *largest;         /* of each thread's share of the logits */
    exponential_sums *sums; /* of each SUMMED_LOGITS logits, so that they do not depend on shares */
} logit_pass;

INLINE float largest_of(const float *x, int64_t n)
{
    float max = -INFINITY;
    for (int64_t i = 0; i < n; i++)
        max = x[i] > max ? x[i] : max;
    return max;
}

INLINE int64_t n_sums(int64_t n) { return (n + SUMMED_LOGITS - 1) / SUMMED_LOGITS; }

/* Find the maxima of this thread's share of the blocks, and then add up its exponentials. */
static void read_share(team_member me, void *argument)
{
    const logit_pass *all = argument;
    const kernel_set *kernels = all->kernels;
    const range sums = share_of(n_sums(all->n), me);
    const int64_t start = sums.start * SUMMED_LOGITS;
    const int64_t n = min(sums.end * SUMMED_LOGITS, all->n) - start;
    float *maxima = all->maxima + logit_blocks(start);
    kernels->block_maxima(all->logits + start, n, maxima);
    all->largest[me.index] = largest_of(maxima, logit_blocks(n));
    wait_for_team();
    const float max = largest_of(all->largest, me.n_threads);
    for (int64_t i = sums.start; i < sums.end; i++) {
        const float *x = all->logits + i * SUMMED_LOGITS;
        const int64_t length = min(SUMMED_LOGITS, all->n - i * SUMMED_LOGITS);
        exponential_sums *sum = all->sums + i;
        sum->plain = kernels->sum_exponentials(x, length, max, 1);
        sum->scaled = all->factor == 1
                          ? sum->plain
                          : kernels->sum_exponentials(x, length, max, all->factor);
    }
}

/* Logits for which it takes less time to wait for another thread than to do its work. */
enum { MIN_SHARED_LOGITS = 1 << 14 };

/* ---- called from Python --------------------------------------------------------------------- */

/* Logits, or blocks, that may be collected. */
INLINE int64_t max_candidates(int64_t n) { return n > BLOCKS_OF_CHUNK ? n : BLOCKS_OF_CHUNK; }

/* Bytes of scratch memory that find_likeliest() needs. */
EXPORT int64_t likeliest_scratch_bytes(int64_t n)
{
    return max_candidates(n) * (int64_t)sizeof(candidate) +
           logit_blocks(n) * (int64_t)sizeof(float) + n_sums(n) * (int64_t)sizeof(exponential_sums);
}

/* Find the `k` largest of `n` logits, at most `n`: their values and places, from the largest on and
 * equal ones in order; sums = (the logarithm of the sum of exp(x), the sum of
 * exp((x - maximum) * factor)). Neither sum is finite if a logit is not a number, or infinite.
 *
 * A team of `n_threads` reads the logits: each thread those near what it has just computed, as far
 * as its cache has them, in a pass of as many threads. */
EXPORT void find_likeliest(const float *logits, int64_t n, int64_t k, float factor, float *values,
                           int32_t *places, double *sums, char *scratch, int level, int n_threads)
{
    const kernel_set kernels = kernels_of(level);
    candidate *found = (candidate *)scratch;
    float *maxima = (float *)(found + max_candidates(n)), largest[n_threads];
    exponential_sums *partial = (exponential_sums *)(maxima + logit_blocks(n));
    logit_pass all = {&kernels, logits, n, factor, maxima, largest, partial};
    for (int thread = 0; thread < n_threads; thread++)
        largest[thread] = -INFINITY; /* the team may be smaller */
    run_team(n < MIN_SHARED_LOGITS ? 1 : n_threads, read_share, &all);
    const float max = largest_of(largest, n_threads);
    double whole = 0, scaled = 0;
    for (int64_t i = 0; i < n_sums(n); i++) {
        whole += (double)partial[i].plain;
        scaled += (double)partial[i].scaled;
    }
    sums[0] = (double)max + log(whole);
    sums[1] = scaled;
    if (!isfinite(sums[0]))
        return;
    const int64_t n_found = collect(logits, n, maxima, max, k, found);
    select_first(found, n_found, k);
    qsort(found, (size_t)k, sizeof *found, compare);
    for (int64_t i = 0; i < k; i++) {
        values[i] = found[i].value;
        places[i] = found[i].place;
    }
}
