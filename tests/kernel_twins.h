/* Random numbers and weights, and comparison of the results of two levels. */

#ifndef KERNEL_TWINS_H
#define KERNEL_TWINS_H

#include <stdio.h>
#include <stdlib.h>

#include "cpu.h"
#include "kv_cache_rows.h"
#include "matrix_product.h"

static kernel_set tested, portable;

static uint32_t random_state = 1;

static uint32_t random_bits(void) /* G. Marsaglia 2003, "Xorshift RNGs" */
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return random_state;
}

static int random_below(int n) { return (int)(random_bits() >> 8) % n; }

static float random_float(void) { return (float)(int32_t)random_bits() * 0x1p-31f; }

static void fill(float *to, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        to[i] = random_float();
}

static void fill_whole(float *to, int64_t n, int limit)
{
    for (int64_t i = 0; i < n; i++)
        to[i] = (float)(random_below(2 * limit + 1) - limit);
}

static int n_failures;

static void report(const char *what, int is_equal)
{
    static const char *last;
    if (is_equal)
        return;
    n_failures++;
    if (last != what)
        printf("%s: %s differs\n", tested.name, what);
    last = what;
}

/* Compare numbers, which may differ by a part of the largest of them. */
static void compare(const char *what, const float *got, const float *expected, int64_t n,
                    float tolerance)
{
    float largest = 0;
    for (int64_t i = 0; i < n; i++)
        if (isfinite(expected[i]))
            largest = fmaxf(largest, fabsf(expected[i]));
    for (int64_t i = 0; i < n; i++)
        report(what, isnan(expected[i]) ? isnan(got[i])
                                        : got[i] == expected[i] ||
                                              fabsf(got[i] - expected[i]) <= tolerance * largest);
}

/* Fill panels with bytes of one value, or random ones. Scales and minima are whole numbers of at
 * most 2, or random numbers, some of them subnormal. */
static void fill_panels(const matrix *w, int byte, int is_whole, uint8_t *to)
{
    static const uint16_t whole[] = {0, 0x3c00, 0x4000, 0xbc00, 0xc000};
    const packed_layout layout = w->layout;
    const int is_stepped = layout.groups_per_super_block > 0;
    for (int64_t g = 0; g < n_panels(w) * n_groups(w); g++) {
        const int64_t n_steps = begins_super_block(layout, g) ? super_scale_bytes(layout) / 2 : 0;
        const int64_t n_scales = (block_bytes(layout) - quant_bytes(layout)) / (is_stepped ? 1 : 2);
        for (int64_t i = 0; i < n_steps; i++, to += 2)
            memcpy(to, &(uint16_t){is_whole ? 0x2400 : random_bits() & 0x97ff}, 2); /* 2**-6 */
        for (int64_t i = 0; i < quant_bytes(layout); i++)
            *to++ = (uint8_t)(byte < 0 ? random_bits() : (uint32_t)byte);
        for (int64_t i = 0; i < n_scales && is_stepped; i++)
            *to++ = (uint8_t)(is_whole ? (uint32_t)(random_below(4) - 2) * 64 : random_bits());
        for (int64_t i = 0; i < n_scales && !is_stepped; i++, to += 2)
            memcpy(to, &(uint16_t){is_whole ? whole[random_below(5)] : random_bits() & 0xa3ff}, 2);
    }
}

#endif
