/* Packed matrices, and what is shared by the functions on them. See packed.c. */

#ifndef PACKED_H
#define PACKED_H

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define X86 1
#define TARGET_AVX2 __attribute__((target("avx2,fma,f16c")))
#define TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")))
#else
#define X86 0
#endif

#define INLINE static inline __attribute__((always_inline))

enum { MAX_ROWS = 8 };
enum { PORTABLE = 0, AVX2 = 1, AVX512_VNNI = 2 };

typedef struct {
    int32_t bits;  /* 4 or 8 */
    int32_t group; /* 16 or 32 */
    int64_t n_rows, n_columns;
    const uint8_t *quants;
    const uint16_t *scales; /* float16 */
    const uint16_t *mins;   /* float16, or NULL */
} packed_matrix;

/* One row of activations for a matrix, padded with zeros to whole blocks. */
typedef struct {
    int8_t *quants;
    float *scales; /* for each group */
    float *sums;   /* for each group */
} activations;

INLINE float half_to_float(uint16_t half)
{
    /* Shift the exponent and the fraction into place, then let a multiplication set the bias:
     * that is exact for subnormal numbers, too. */
    uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
    float value;
    memcpy(&value, &bits, 4);
    value *= 0x1p112f;
    if ((half & 0x7c00) == 0x7c00) { /* infinite, or no number */
        bits |= 0x7f800000;
        memcpy(&value, &bits, 4);
    }
    return half & 0x8000 ? -value : value;
}

INLINE int64_t n_groups(const packed_matrix *w) { return w->n_columns / w->group; }

/* To the nearest, ties to even. */
INLINE uint16_t finite_to_bfloat16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

INLINE uint16_t to_bfloat16(float value)
{
    return value == value ? finite_to_bfloat16(value) : 0x7fc0;
}

/* Bytes that `round_rows` needs for `n_x` rows. */
int64_t scratch_bytes(const packed_matrix *w, int n_x);

/* Round `n_x` rows of `x` (n_x, columns) to 8 bits, into `scratch`; `a` says where. */
void round_rows(const packed_matrix *w, const float *x, int n_x, activations *a, void *scratch,
                int level);

/* The rows `start` to `end` of the weights times `n_x` rows of activations, into y (n_x, rows). */
void multiply_rows(const packed_matrix *w, const activations *a, int n_x, float *y, int64_t start,
                   int64_t end, int level);

#endif
