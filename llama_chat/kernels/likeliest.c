/* The most likely tokens of a vocabulary, and the sums by which their probabilities are known. */

#include "likeliest.h"

#include <math.h>
#include <stdlib.h>

#include "cpu.h"

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

/* ---- called from Python --------------------------------------------------------------------- */

/* Bytes of scratch memory that find_likeliest() needs. */
EXPORT int64_t likeliest_scratch_bytes(int64_t n)
{
    const int64_t n_candidates = n > BLOCKS_OF_CHUNK ? n : BLOCKS_OF_CHUNK;
    return n_candidates * (int64_t)sizeof(candidate) + logit_blocks(n) * (int64_t)sizeof(float);
}

/* Find the `k` largest of `n` logits, at most `n`: their values and places, from the largest on and
 * equal ones in order; sums = (the logarithm of the sum of exp(x), the sum of
 * exp((x - maximum) * factor)). Neither sum is finite if a logit is not a number, or infinite. */
EXPORT void find_likeliest(const float *logits, int64_t n, int64_t k, float factor, float *values,
                           int32_t *places, double *sums, char *scratch, int level)
{
    const kernel_set kernels = kernels_of(level);
    float *maxima = (float *)scratch, max = -INFINITY;
    candidate *found = (candidate *)(maxima + logit_blocks(n));
    kernels.block_maxima(logits, n, maxima);
    for (int64_t b = 0; b < logit_blocks(n); b++)
        max = maxima[b] > max ? maxima[b] : max;
    const double whole = kernels.sum_exponentials(logits, n, max, 1);
    sums[0] = (double)max + log(whole);
    sums[1] = factor == 1 ? whole : kernels.sum_exponentials(logits, n, max, factor);
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
