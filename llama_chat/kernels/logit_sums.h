/* Maxima and sums over the logits of a vocabulary, for any instruction set. */

#ifndef LOGIT_SUMS_H
#define LOGIT_SUMS_H

#include "likeliest.h"
#include "numbers.h"

static void block_maxima(const float *x, int64_t n, float *maxima)
{
    int64_t i = 0;
    for (; i + LOGIT_BLOCK <= n; i += LOGIT_BLOCK) {
        float max = x[i];
#pragma omp simd reduction(max : max)
        for (int64_t j = 1; j < LOGIT_BLOCK; j++)
            max = x[i + j] > max ? x[i + j] : max;
        maxima[i / LOGIT_BLOCK] = max;
    }
    if (i == n)
        return;
    float max = x[i];
    for (int64_t j = i + 1; j < n; j++)
        max = x[j] > max ? x[j] : max;
    maxima[i / LOGIT_BLOCK] = max;
}

static double sum_exponentials(const float *x, int64_t n, float max, float factor)
{
    enum { CHUNK_LOGITS = 1024 }; /* so many are added in float32 */
    double total = 0;
    for (int64_t start = 0; start < n; start += CHUNK_LOGITS) {
        const int64_t end = start + CHUNK_LOGITS < n ? start + CHUNK_LOGITS : n;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = start; i < end; i++)
            sum += fast_exp((x[i] - max) * factor);
        total += (double)sum;
    }
    return total;
}

#endif
