/* The most likely tokens of a vocabulary, and the sums that normalize their probabilities. */

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

/* ---- a row of logits -------------------------------------------------------------------------- */

/* Sums of exp(x - max) and of exp((x - max) * factor) for some logits. */
typedef struct {
    float plain, scaled;
} exponential_sums;

/* A search in one row: the arguments of find_likeliest() for it, and memory. */
typedef struct {
    const kernel_set *kernels;
    const float *logits;
    int64_t n, k;
    float factor;
    float *values;
    int32_t *places;
    double *sums;
    float *maxima;             /* of the blocks */
    exponential_sums *partial; /* of each SUMMED_LOGITS logits, so that they do not depend on shares */
    candidate *found;
} row_search;

INLINE float largest_of(const float *x, int64_t n)
{
    float max = -INFINITY;
    for (int64_t i = 0; i < n; i++)
        max = x[i] > max ? x[i] : max;
    return max;
}

INLINE int64_t n_sums(int64_t n) { return (n + SUMMED_LOGITS - 1) / SUMMED_LOGITS; }

/* Find the maxima of this member's share of the blocks; returns the largest. */
static float find_maxima(const row_search *row, team_member me)
{
    const range sums = share_of(n_sums(row->n), me);
    const int64_t start = sums.start * SUMMED_LOGITS;
    const int64_t n = min(sums.end * SUMMED_LOGITS, row->n) - start;
    float *maxima = row->maxima + logit_blocks(start);
    row->kernels->block_maxima(row->logits + start, n, maxima);
    return largest_of(maxima, logit_blocks(n));
}

/* Add up the exponentials of this member's share, relative to the largest logit. */
static void add_exponentials(const row_search *row, float max, team_member me)
{
    const range sums = share_of(n_sums(row->n), me);
    for (int64_t i = sums.start; i < sums.end; i++) {
        const float *x = row->logits + i * SUMMED_LOGITS;
        const int64_t length = min(SUMMED_LOGITS, row->n - i * SUMMED_LOGITS);
        exponential_sums *sum = row->partial + i;
        sum->plain = row->kernels->sum_exponentials(x, length, max, 1);
        sum->scaled = row->factor == 1
                          ? sum->plain
                          : row->kernels->sum_exponentials(x, length, max, row->factor);
    }
}

/* Store what was found. */
static void store_likeliest(const row_search *row, float max)
{
    double whole = 0, scaled = 0;
    for (int64_t i = 0; i < n_sums(row->n); i++) {
        whole += (double)row->partial[i].plain;
        scaled += (double)row->partial[i].scaled;
    }
    row->sums[0] = (double)max + log(whole);
    row->sums[1] = scaled;
    if (!isfinite(row->sums[0]))
        return;
    const int64_t n_found = collect(row->logits, row->n, row->maxima, max, row->k, row->found);
    select_first(row->found, n_found, row->k);
    qsort(row->found, (size_t)row->k, sizeof *row->found, compare);
    for (int64_t i = 0; i < row->k; i++) {
        row->values[i] = row->found[i].value;
        row->places[i] = row->found[i].place;
    }
}

/* ---- rows, by a team -------------------------------------------------------------------------- */

/* The arguments of find_likeliest(), and what its threads share. */
typedef struct {
    const kernel_set *kernels;
    const float *const *rows;
    int64_t n_rows, n, k;
    float factor;
    float *values;
    int32_t *places;
    double *sums;
    char *scratch;
    float *largest; /* of each thread's share of a row */
} search_job;

/* Logits, or blocks, that may be collected. */
INLINE int64_t max_candidates(int64_t n) { return n > BLOCKS_OF_CHUNK ? n : BLOCKS_OF_CHUNK; }

/* Bytes of the memory for one row. */
INLINE int64_t row_scratch_bytes(int64_t n)
{
    return max_candidates(n) * (int64_t)sizeof(candidate) +
           logit_blocks(n) * (int64_t)sizeof(float) + n_sums(n) * (int64_t)sizeof(exponential_sums);
}

/* Begin to search row `i` in the memory of a thread. */
static row_search search_of(const search_job *job, int64_t i, int thread)
{
    candidate *found = (candidate *)(job->scratch + thread * row_scratch_bytes(job->n));
    float *maxima = (float *)(found + max_candidates(job->n));
    return (row_search){
        .kernels = job->kernels,
        .logits = job->rows[i],
        .n = job->n,
        .k = job->k,
        .factor = job->factor,
        .values = job->values + i * job->k,
        .places = job->places + i * job->k,
        .sums = job->sums + 2 * i,
        .maxima = maxima,
        .partial = (exponential_sums *)(maxima + logit_blocks(job->n)),
        .found = found,
    };
}

/* Search one row together. In a pass of as many threads, each thread reads about the logits that it
 * has just computed, which may still be in its cache. */
static void search_together(team_member me, void *argument)
{
    const search_job *job = argument;
    const row_search row = search_of(job, 0, 0);
    job->largest[me.index] = find_maxima(&row, me);
    wait_for_team();
    add_exponentials(&row, largest_of(job->largest, me.n_threads), me);
}

/* Search this thread's share of the rows. */
static void search_share(team_member me, void *argument)
{
    const search_job *job = argument;
    const team_member alone = {0, 1};
    const range rows = share_of(job->n_rows, me);
    for (int64_t i = rows.start; i < rows.end; i++) {
        const row_search row = search_of(job, i, me.index);
        const float max = find_maxima(&row, alone);
        add_exponentials(&row, max, alone);
        store_likeliest(&row, max);
    }
}

/* Number of logits from which waiting for another thread takes less time than doing its work. */
enum { MIN_SHARED_LOGITS = 1 << 14 };

/* ---- called from Python ----------------------------------------------------------------------- */

/* Bytes of scratch memory that find_likeliest() needs. */
EXPORT int64_t likeliest_scratch_bytes(int64_t n_rows, int64_t n, int n_threads)
{
    return min(n_rows, n_threads) * row_scratch_bytes(n);
}

/* Find the `k` largest of `n` logits, at most `n`, of each row: their values (n_rows, k) and places,
 * from the largest on and equal ones in order; sums (n_rows, 2) = the logarithm of the sum of exp(x),
 * and the sum of exp((x - maximum) * factor). Neither sum is finite if a logit is not a number, or
 * plus infinity, or if all are minus infinity. */
EXPORT void find_likeliest(const float *const *rows, int64_t n_rows, int64_t n, int64_t k,
                           float factor, float *values, int32_t *places, double *sums,
                           char *scratch, int level, int n_threads)
{
    const kernel_set kernels = kernels_of(level);
    float largest[MAX_CALLED_THREADS];
    n_threads = (int)min(n_threads, MAX_CALLED_THREADS);
    for (int thread = 0; thread < n_threads; thread++)
        largest[thread] = -INFINITY; /* the team may be smaller */
    search_job job = {&kernels, rows,   n_rows, n,       k,      factor,
                      values,   places, sums,   scratch, largest};
    if (n_rows * n < MIN_SHARED_LOGITS)
        n_threads = 1;
    if (n_rows > 1) {
        run_team((int)min(n_rows, n_threads), search_share, &job);
    } else {
        run_team(n_threads, search_together, &job);
        const row_search row = search_of(&job, 0, 0);
        store_likeliest(&row, largest_of(largest, n_threads));
    }
}
