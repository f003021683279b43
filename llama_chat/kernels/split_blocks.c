/* Splitting of K-quant blocks of GGUF into the tensors of a PackedWeight.
 *
 * It does the same as checkpoints/gguf_blocks.py, for the most common formats. Super-block scales
 * are not split off: they are read from the blocks.
 */

#include "packed.h"

/* Blocks as in https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h */
typedef struct {
    uint16_t d, dmin;
    uint8_t scales[12], qs[128];
} q4_k_block;

typedef struct {
    uint16_t d, dmin;
    uint8_t scales[12], qh[32], qs[128];
} q5_k_block;

typedef struct {
    uint8_t ql[128], qh[64];
    int8_t scales[16];
    uint16_t d;
} q6_k_block;

/* Pack two groups, the low and the high nibbles of `n` bytes, as W4. */
INLINE void pack_two_groups(const uint8_t *from, int n, uint8_t *low, uint8_t *high)
{
    const uint8_t *second = from + n / 2;
    for (int i = 0; i < n / 2; i++) {
        low[i] = (uint8_t)((from[i] & 15) | second[i] << 4);
        high[i] = (uint8_t)(from[i] >> 4 | (second[i] & 0xf0));
    }
}

/* Pack the upper bits of a group of 16, two after a `shift` in as many bytes, as in W6. */
INLINE void pack_upper_bits(const uint8_t *from, int shift, uint8_t *to)
{
    for (int i = 0; i < 4; i++) {
        int bits = 0;
        for (int piece = 0; piece < 4; piece++)
            bits |= (from[i + 4 * piece] >> shift & 3) << 2 * piece;
        to[i] = (uint8_t)bits;
    }
}

/* Pack the fifth bits of a group, `shift` in 32 bytes, as in W5. */
INLINE void pack_fifth_bits(const uint8_t *from, int shift, uint8_t *to)
{
    for (int i = 0; i < 4; i++) {
        int bits = 0;
        for (int at = 0; at < 8; at++)
            bits |= (from[i + 4 * at] >> shift & 1) << at;
        to[i] = (uint8_t)bits;
    }
}

/* Unpack the scales and minima of eight groups, six bits each. */
INLINE void unpack_six_bits(const uint8_t *from, int8_t *scales, int8_t *mins)
{
    for (int i = 0; i < 4; i++) {
        uint8_t scale = from[i], min = from[4 + i], rest = from[8 + i];
        scales[i] = (int8_t)(scale & 63);
        mins[i] = (int8_t)(min & 63);
        scales[4 + i] = (int8_t)((rest & 15) | (scale >> 6) << 4);
        mins[4 + i] = (int8_t)(rest >> 4 | (min >> 6) << 4);
    }
}

static void split_q4_k(const q4_k_block *blocks, int64_t n, uint8_t *quants, int8_t *scales,
                       int8_t *mins)
{
    for (int64_t b = 0; b < n; b++, quants += 8 * 16) {
        for (int g = 0; g < 8; g += 2)
            pack_two_groups(blocks[b].qs + 16 * g, 32, quants + 16 * g, quants + 16 * (g + 1));
        unpack_six_bits(blocks[b].scales, scales + 8 * b, mins + 8 * b);
    }
}

static void split_q5_k(const q5_k_block *blocks, int64_t n, uint8_t *quants, int8_t *scales,
                       int8_t *mins)
{
    for (int64_t b = 0; b < n; b++, quants += 8 * 20) {
        for (int g = 0; g < 8; g += 2)
            pack_two_groups(blocks[b].qs + 16 * g, 32, quants + 20 * g, quants + 20 * (g + 1));
        for (int g = 0; g < 8; g++)
            pack_fifth_bits(blocks[b].qh, g, quants + 20 * g + 16);
        unpack_six_bits(blocks[b].scales, scales + 8 * b, mins + 8 * b);
    }
}

static void split_q6_k(const q6_k_block *blocks, int64_t n, uint8_t *quants, int8_t *scales)
{
    for (int64_t b = 0; b < n; b++) {
        for (int half = 0; half < 2; half++, quants += 8 * 12) {
            const uint8_t *low = blocks[b].ql + 64 * half, *upper = blocks[b].qh + 32 * half;
            for (int g = 0; g < 4; g++)
                pack_two_groups(low + 16 * g, 16, quants + 12 * g, quants + 12 * (g + 4));
            for (int g = 0; g < 8; g++)
                pack_upper_bits(upper + 16 * (g % 2), g / 2 * 2, quants + 12 * g + 8);
        }
        memcpy(scales + 16 * b, blocks[b].scales, 16);
    }
}

/* ---- called from Python --------------------------------------------------------------------- */

/* Split `n` blocks of Q4_K, Q5_K or Q6_K, chosen by `bits`, into quants, scales and minima. */
EXPORT void split_blocks(int bits, const void *blocks, int64_t n, uint8_t *quants, int8_t *scales,
                         int8_t *mins)
{
    if (bits == 4)
        split_q4_k(blocks, n, quants, scales, mins);
    else if (bits == 5)
        split_q5_k(blocks, n, quants, scales, mins);
    else
        split_q6_k(blocks, n, quants, scales);
}
