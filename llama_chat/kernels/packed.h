/* Packed matrices, and what is shared by the functions on them.
 *
 * Sixteen rows of a matrix make a panel. A panel is a run of blocks, one for each group of 16 or 32
 * neighbouring columns, with the quants, scales and minima of its sixteen rows: one stream of bytes,
 * read once from front to back. A weight is scale * q + min (see model/quantization.py).
 *
 * The quants of a block are chunks of 64 bytes, of which each row has four neighbouring bytes. For
 * W8 those are four columns, as q + 128. For W4 their low halves are four columns of the first half
 * of the group, and their high halves those that stand as far in its second half. W6 is as W4, and
 * then come the upper two bits of its weights: a byte has those of four columns that are a quarter
 * of the group apart. Behind the quants are the sixteen scales, and then, if there are any, the
 * sixteen minima. Those are float16; or signed bytes, to be multiplied by float16 steps that stand
 * before the first of all blocks that share them. The last panel is filled up with rows of zeros.
 */

#ifndef PACKED_H
#define PACKED_H

#include <stdint.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#else
#define omp_get_thread_num() 0
#define omp_get_num_threads() 1
#define omp_get_max_threads() 1
#endif

#if defined(__x86_64__) && defined(__GNUC__)
#define X86 1
#define TARGET_AVX2 __attribute__((target("avx2,fma,f16c")))
#define TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")))
#else
#define X86 0
#endif

#define INLINE static inline __attribute__((always_inline))

enum { PANEL = 16, CHUNK = 4 * PANEL, MAX_GROUP = 32 };
enum { PORTABLE = 0, AVX2 = 1, AVX512_VNNI = 2 };

typedef struct {
    int32_t bits;  /* 4, 6 or 8 */
    int32_t group; /* 16 or 32 */
    int32_t has_mins;
    int32_t span; /* groups that share their steps; 0 if scales and minima are float16 */
    int64_t n_rows, n_columns;
    const uint8_t *panels;
} packed_matrix;

INLINE int64_t n_groups(const packed_matrix *w) { return w->n_columns / w->group; }

INLINE int64_t n_panels(const packed_matrix *w) { return (w->n_rows + PANEL - 1) / PANEL; }

/* Of a block; and of the part of them that has the low four bits of W4 and W6, or all of W8. */
INLINE int64_t quant_bytes(int bits, int group) { return PANEL * group * bits / 8; }
INLINE int low_chunks(int bits, int group) { return group / (bits == 8 ? 4 : 8); }

/* Bytes of sixteen scales, or of sixteen scales and minima. */
INLINE int64_t number_bytes(int has_mins, int span)
{
    return PANEL * (has_mins ? 2 : 1) * (span ? 1 : (int64_t)sizeof(uint16_t));
}

INLINE int64_t block_bytes(int bits, int group, int has_mins, int span)
{
    return quant_bytes(bits, group) + number_bytes(has_mins, span);
}

/* Bytes of the steps before the block of group `g`. */
INLINE int64_t step_bytes(int64_t g, int has_mins, int span)
{
    return span && g % span == 0 ? number_bytes(has_mins, 0) : 0;
}

INLINE int64_t panel_bytes(const packed_matrix *w)
{
    int64_t blocks = n_groups(w) * block_bytes(w->bits, w->group, w->has_mins, w->span);
    return blocks + (w->span ? n_groups(w) / w->span * number_bytes(w->has_mins, 0) : 0);
}

/* DO(bits, group, has_mins, span, ...) for each layout that there is. */
#define FOR_LAYOUTS(DO, ...)                                                                       \
    DO(4, 32, 0, 0, __VA_ARGS__)                                                                   \
    DO(4, 32, 1, 0, __VA_ARGS__)                                                                   \
    DO(6, 32, 0, 0, __VA_ARGS__)                                                                   \
    DO(6, 32, 1, 0, __VA_ARGS__)                                                                   \
    DO(8, 32, 0, 0, __VA_ARGS__)                                                                   \
    DO(4, 16, 0, 16, __VA_ARGS__)                                                                  \
    DO(4, 16, 1, 16, __VA_ARGS__)                                                                  \
    DO(4, 32, 1, 8, __VA_ARGS__)                                                                   \
    DO(6, 16, 0, 16, __VA_ARGS__)                                                                  \
    DO(6, 32, 1, 8, __VA_ARGS__)                                                                   \
    DO(8, 32, 0, 8, __VA_ARGS__)

INLINE int is_layout(const packed_matrix *w, int bits, int group, int has_mins, int span)
{
    return w->bits == bits && w->group == group && w->has_mins == has_mins && w->span == span;
}

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

INLINE float half_at(const uint8_t *from)
{
    uint16_t half;
    memcpy(&half, from, 2);
    return half_to_float(half);
}

/* A float so large that it has no room for a fraction: adding it rounds, ties to even. */
#define ROUNDING 0x1.8p23f
#define ROUNDING_BITS 0x4b400000

/* The whole number that stands in a float to which ROUNDING was added. */
INLINE int32_t rounded_part(float shifted)
{
    int32_t bits;
    memcpy(&bits, &shifted, 4);
    return bits - ROUNDING_BITS;
}

/* exp(x) to about 1e-7, without a branch, so that a compiler can spread it over a vector. */
INLINE float fast_exp(float x)
{
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float shifted = x * 1.44269504f + ROUNDING, whole = shifted - ROUNDING;
    float f = x - whole * 0.693145752f - whole * 1.42860677e-6f;
    float p = 1 + f * (1 + f * (0.5f + f * (0.166666667f + f * (0.0416666667f +
              f * (0.00833333333f + f * 0.00138888889f)))));
    int32_t bits = (rounded_part(shifted) + 127) * (1 << 23);
    float power;
    memcpy(&power, &bits, 4);
    return p * power;
}

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

INLINE float bfloat16_to_float(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* ---- every function for every instruction set ----------------------------------------------- */

/* DEFINE(target, suffix, level) for each level, and the table of what it defines, by level. */
#if X86
#define FOR_LEVELS(DEFINE)                                                                         \
    DEFINE(, portable, PORTABLE)                                                                   \
    DEFINE(TARGET_AVX2, avx2, AVX2)                                                                \
    DEFINE(TARGET_AVX512, avx512, AVX512_VNNI)
#define BY_LEVEL(name) {name##_portable, name##_avx2, name##_avx512}
#else
#define FOR_LEVELS(DEFINE) DEFINE(, portable, PORTABLE)
#define BY_LEVEL(name) {name##_portable}
#endif

/* ---- rounding.c ---------------------------------------------------------------------------- */

/* Bytes that a rounded row of activations takes. */
int64_t rounded_bytes(int64_t n_columns, int group);

/* How many of `n_left` rows the next tile takes, and how many one takes at most. */
int tile_size(int n_left, int level);
int largest_tile(int level);

/* Round the `n` rows of a tile, x (n, columns) in bfloat16 (`narrow`) or float32, to 8 bits. */
void round_tile(const void *x, int narrow, int64_t n_columns, int group, int n, uint8_t *tile,
                int level);

/* What rounding leaves of a row: `to` gets x less what round_tile() makes of it. */
void take_remainder(const float *x, int64_t n_columns, int group, float *to, int level);

/* ---- products.c ---------------------------------------------------------------------------- */

/* What becomes of a product: it is written as float32 or bfloat16, or added to what is there. */
enum { AS_FLOATS = 0, AS_BFLOAT16 = 1, ADDED = 2 };

/* The panels `first` to `end` times `n_x` rounded rows, to y (n_x, rows). */
void multiply_panels(const packed_matrix *w, const uint8_t *rounded, int n_x, void *y, int how,
                     int64_t first, int64_t end, int level);

#endif
