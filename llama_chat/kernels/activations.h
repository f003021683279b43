/* RMSNorm, SwiGLU and residual sums, for any instruction set. */

#ifndef ACTIVATIONS_H
#define ACTIVATIONS_H

#include <math.h>

#include "numbers.h"

/* Root mean square normalization (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467). */
static void rms_norm(const float *x, const float *weight, int64_t n, float eps, float *to)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    float factor = 1 / sqrtf(sum / (float)n + eps);
    for (int64_t i = 0; i < n; i++)
        to[i] = x[i] * factor * weight[i];
}

/* gate = silu(gate) * up (Shazeer 2020, https://arxiv.org/abs/2002.05202). */
static void swiglu(float *gate, const float *up, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        gate[i] = gate[i] / (1 + fast_exp(-gate[i])) * up[i];
}

#endif
