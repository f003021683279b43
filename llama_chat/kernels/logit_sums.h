/* Maxima and sums over the logits of a vocabulary, for any instruction set. */

#ifndef LOGIT_SUMS_H
#define LOGIT_SUMS_H

#include <math.h>
#include <string.h>

#include "likeliest.h"
#include "numbers.h"

static void block_maxima(const float *x, int64_t n, float *maxima)
{
    for (int64_t start = 0; start < n; start += LOGIT_CHUNK, maxima += BLOCKS_OF_CHUNK) {
        const int64_t length = n - start < LOGIT_CHUNK ? n - start : LOGIT_CHUNK;
        float max[BLOCKS_OF_CHUNK];
        for (int b = 0; b < BLOCKS_OF_CHUNK; b++)
            max[b] = -INFINITY;
        const float *at = x + start, *end = at + length;
        for (; at + BLOCKS_OF_CHUNK <= end; at += BLOCKS_OF_CHUNK)
#pragma omp simd
            for (int b = 0; b < BLOCKS_OF_CHUNK; b++)
                max[b] = at[b] > max[b] ? at[b] : max[b];
        for (int b = 0; at < end; at++, b++)
            max[b] = *at > max[b] ? *at : max[b];
        memcpy(maxima, max, sizeof max);
    }
}

static float sum_exponentials(const float *x, int64_t n, float max, float factor)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++)
        sum += fast_exp((x[i] - max) * factor);
    return sum;
}

#endif
