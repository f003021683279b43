/* The layout of packed matrices in memory.
 *
 * Sixteen rows of a matrix make a panel. A panel is a run of blocks, one for each group of 16 or 32
 * neighbouring columns, with the quants, scales and minima of its sixteen rows: one stream of
 * bytes, read once from front to back. A weight is scale * q + min (see PackedWeight in Python).
 *
 * The quants of a block are chunks of 64 bytes, of which each row has four neighbouring bytes. For
 * W8 those are four columns, as q + 128. For W4 the low nibbles are four columns of the first half
 * of the group, and the high nibbles the corresponding four of its second half. W5 and W6 begin as
 * W4. Then come upper bits: of W5 those of eight columns in one byte, every fourth of the group; of
 * W6 those of four columns, a quarter of the group apart. IQ4 is stored as W4, but its numbers are
 * places in a table of quants of W8. The quants are followed by sixteen scales and, in layouts with
 * minima, sixteen minima.
 *
 * Scales and minima are float16; or int8, to be multiplied by the float16 scales of a super-block
 * (a run of groups, as in the K-quants of GGUF), which precede its first block. The last panel is
 * padded with rows of zeros.
 */

#ifndef PACKED_H
#define PACKED_H

#include "numbers.h"

enum { PANEL = 16, CHUNK = 4 * PANEL, MAX_GROUP = 32 };

typedef struct {
    int32_t bits;                   /* 4, 5, 6 or 8 */
    int32_t group;                  /* 16 or 32 */
    int32_t has_mins;               /* if not, the quants are centred on zero */
    int32_t groups_per_super_block; /* 0 if scales and minima are float16 */
    int32_t is_iq4;                 /* W4 of places in IQ4_TABLE */
} packed_layout;

/* Quants of IQ4, as W8 stores them. */
_Alignas(16) static const uint8_t IQ4_TABLE[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                                   129, 141, 153, 166, 181, 197, 217, 241};

/* DO(bits, group, has_mins, groups_per_super_block, is_iq4) for each layout; LAYOUTS in Python. */
#define FOR_LAYOUTS(DO)                                                                            \
    DO(4, 32, 0, 0, 0)                                                                             \
    DO(4, 32, 1, 0, 0)                                                                             \
    DO(4, 32, 0, 0, 1)                                                                             \
    DO(5, 32, 0, 0, 0)                                                                             \
    DO(5, 32, 1, 0, 0)                                                                             \
    DO(8, 32, 0, 0, 0)                                                                             \
    DO(4, 16, 0, 16, 0)                                                                            \
    DO(4, 16, 1, 16, 0)                                                                            \
    DO(4, 32, 1, 8, 0)                                                                             \
    DO(4, 32, 0, 8, 1)                                                                             \
    DO(6, 16, 0, 16, 0)                                                                            \
    DO(5, 32, 1, 8, 0)

INLINE int is_layout(packed_layout a, packed_layout b)
{
    return a.bits == b.bits && a.group == b.group && a.has_mins == b.has_mins &&
           a.groups_per_super_block == b.groups_per_super_block && a.is_iq4 == b.is_iq4;
}

/* Bits of the quants that are multiplied. */
INLINE int multiplied_bits(packed_layout layout) { return layout.is_iq4 ? 8 : layout.bits; }

/* Bytes of all quants of a block. */
INLINE int64_t quant_bytes(packed_layout layout) { return PANEL * layout.group * layout.bits / 8; }

/* Number of chunks with the low four bits of W4, W5 and W6, or with all of W8. */
INLINE int low_chunks(packed_layout layout) { return layout.group / (layout.bits == 8 ? 4 : 8); }

/* Mask of the upper bits of a quant, which W5 and W6 have. */
INLINE int upper_bits(packed_layout layout)
{
    return layout.bits == 5 ? 1 : layout.bits == 6 ? 3 : 0;
}

/* Chunk with all upper bits, and shift to those of the low nibbles of chunk `c`; those of its high
 * nibbles are four bits above. */
INLINE int upper_chunk(packed_layout layout) { return layout.group / 8; }
INLINE int upper_shift(int c, packed_layout layout) { return layout.bits == 6 ? 2 * c : c; }

/* Bytes of sixteen scales, or of sixteen minima. */
INLINE int64_t scale_bytes(packed_layout layout)
{
    return PANEL * (layout.groups_per_super_block ? 1 : (int64_t)sizeof(uint16_t));
}

INLINE int64_t block_bytes(packed_layout layout)
{
    return quant_bytes(layout) + (layout.has_mins ? 2 : 1) * scale_bytes(layout);
}

/* Bytes of the scales, and minima, of a super-block. */
INLINE int64_t super_scale_bytes(packed_layout layout)
{
    return PANEL * (layout.has_mins ? 2 : 1) * (int64_t)sizeof(uint16_t);
}

/* True if a super-block begins with the block of group `g`, so that its scales come first. */
INLINE int begins_super_block(packed_layout layout, int64_t g)
{
    return layout.groups_per_super_block && g % layout.groups_per_super_block == 0;
}

/* Columns of a panel that are unpacked at a time, and their size in bytes, with at most three
 * floats for 16 quants: they stay in L1, beside the same columns of a tile. */
enum { UNPACKED_COLUMNS = 512, UNPACKED_BYTES = PANEL * UNPACKED_COLUMNS * 7 / 4 };

INLINE int64_t panel_bytes_of(packed_layout layout, int64_t n_groups)
{
    int64_t bytes = n_groups * block_bytes(layout);
    if (layout.groups_per_super_block)
        bytes += n_groups / layout.groups_per_super_block * super_scale_bytes(layout);
    return bytes;
}

#endif
