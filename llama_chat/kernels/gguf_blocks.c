/* Packing of the quantized blocks of GGUF into panels.
 *
 * checkpoints/gguf_blocks.py describes the contents of a block and of a PackedWeight. Here sixteen
 * blocks, one of each row of a panel, are split at once: all operations are on chunks.
 */

#define LANES 4 /* of vectors that every processor of 64 bits has */

#include "panel_span.h"
#include "transposition.h"

/* Blocks of the rows of a panel, `stride` bytes apart; fewer than sixteen in the last panel. */
typedef struct {
    const uint8_t *first;
    int64_t stride;
    int n_rows;
} row_blocks;

/* ---- reading of sixteen rows ---------------------------------------------------------------- */

/* Bytes of a row; for the padding, which is cleared later, those of the last row. */
INLINE const uint8_t *row_at(const row_blocks *from, int row, int64_t offset)
{
    return from->first + min(row, from->n_rows - 1) * from->stride + offset;
}

/* Load `n` chunks, at least four, from `offset` on. */
INLINE void load_chunks(const row_blocks *from, int64_t offset, int n, chunk *to)
{
    for (int at = 0; at < n; at += 4) {
        const int first = at + 4 <= n ? at : n - 4; /* the last four may be some of those before */
        for (int row = 0; row < PANEL; row += 4) {
            vector square[4];
            for (int i = 0; i < 4; i++)
                memcpy(&square[i], row_at(from, row + i, offset + 4 * first), sizeof *square);
            transpose(square);
            for (int i = 0; i < 4; i++)
                memcpy((uint32_t *)&to[first + i] + row, &square[i], sizeof *square);
        }
    }
}

/* Load numbers of 16 bits. */
INLINE void load_halves(const row_blocks *from, int64_t offset, uint16_t *to)
{
    for (int row = 0; row < PANEL; row++)
        memcpy(to + row, row_at(from, row, offset), sizeof *to);
}

/* Load the scales of a super-block, and those of its minima, which the formats subtract. */
INLINE void load_super_scales(const row_blocks *from, int64_t offset, panel_span *to)
{
    load_halves(from, offset, to->scales);
    load_halves(from, offset + 2, to->mins);
    for (int row = 0; row < PANEL; row++)
        to->mins[row] ^= 0x8000;
}

/* ---- splitting ------------------------------------------------------------------------------ */

/* A field of each byte, above `shift` bits. */
#define FIELD(words, shift, mask) ((words) >> (shift) & (mask)*0x01010101u)

/* The low and the high nibbles of W4, from such fields of the two halves of a group. */
#define NIBBLES(low, high, shift, mask) (FIELD(low, shift, mask) | FIELD(high, shift, mask) << 4)

/* Store the lowest byte of each row: a scale or a minimum. */
INLINE void store_bytes(chunk words, int8_t *to)
{
    for (int row = 0; row < PANEL; row++)
        to[row] = (int8_t)words[row];
}

/* Store all bytes of each row: scales or minima of four groups. */
INLINE void store_scales(chunk words, int8_t (*to)[PANEL])
{
    for (int i = 0; i < 4; i++)
        store_bytes(words >> 8 * i, to[i]);
}

/* Subtract 32 from scales of six bits. */
INLINE chunk centred(chunk words)
{
    return ((words | 0x80808080) - 0x20202020) ^ 0x80808080;
}

static void split_q4_0(const row_blocks *from, panel_span *to)
{
    load_halves(from, 0, to->scales);
    load_chunks(from, 2, 4, to->quants);
}

static void split_q4_1(const row_blocks *from, panel_span *to)
{
    load_halves(from, 0, to->scales);
    load_halves(from, 2, to->mins);
    load_chunks(from, 4, 4, to->quants);
}

/* Load the quants of Q5_0 and Q5_1: fifth bits in their order, and nibbles. */
INLINE void load_q5(const row_blocks *from, int64_t offset, panel_span *to)
{
    chunk words[5], fifth = {0};
    load_chunks(from, offset, 5, words);
    for (int i = 0; i < 8; i++) {
        const chunk four = words[0] >> 4 * i & 15;
        fifth |= ((four | four << 7 | four << 14 | four << 21) & 0x01010101) << i;
    }
    memcpy(to->quants, words + 1, 4 * CHUNK);
    to->quants[4] = fifth;
}

static void split_q5_0(const row_blocks *from, panel_span *to)
{
    load_halves(from, 0, to->scales);
    load_q5(from, 2, to);
}

static void split_q5_1(const row_blocks *from, panel_span *to)
{
    load_halves(from, 0, to->scales);
    load_halves(from, 2, to->mins);
    load_q5(from, 4, to);
}

static void split_q8_0(const row_blocks *from, panel_span *to)
{
    load_halves(from, 0, to->scales);
    load_chunks(from, 2, 8, to->quants);
}

static void split_q2_k(const row_blocks *from, panel_span *to)
{
    chunk words[20], *quants = to->quants;
    load_chunks(from, 0, 20, words);
    load_super_scales(from, 80, to);
    for (int i = 0; i < 4; i++) {
        store_scales(FIELD(words[i], 0, 15), to->group_scales + 4 * i);
        store_scales(FIELD(words[i], 4, 15), to->group_mins + 4 * i);
    }
    for (int g = 0; g < 16; g++) {
        const chunk *at = words + 4 + g / 8 * 8 + g % 2 * 4;
        for (int i = 0; i < 2; i++)
            *quants++ = NIBBLES(at[i], at[i + 2], g / 2 % 4 * 2, 3);
    }
}

static void split_q3_k(const row_blocks *from, panel_span *to)
{
    chunk words[27], *quants = to->quants;
    load_chunks(from, 0, 27, words);
    load_halves(from, 108, to->scales);
    for (int i = 0; i < 4; i++) {
        const chunk low = FIELD(words[24 + i % 2], i / 2 * 4, 15);
        store_scales(centred(low | FIELD(words[26], 2 * i, 3) << 4), to->group_scales + 4 * i);
    }
    for (int g = 0; g < 16; g++) {
        const chunk *upper = words + g % 2 * 4, *low = words + 8 + g / 8 * 8 + g % 2 * 4;
        for (int i = 0; i < 2; i++)
            *quants++ = (NIBBLES(low[i], low[i + 2], g / 2 % 4 * 2, 3) |
                         NIBBLES(upper[i], upper[i + 2], g / 2, 1) << 2) + 0x44444444;
    }
}

/* Split the scales and minima of the eight groups of Q4_K and Q5_K. */
INLINE void store_k_scales(const chunk *words, panel_span *to)
{
    const chunk rest = words[2];
    store_scales(FIELD(words[0], 0, 63), to->group_scales);
    store_scales(FIELD(words[1], 0, 63), to->group_mins);
    store_scales(FIELD(rest, 0, 15) | FIELD(words[0], 6, 3) << 4, to->group_scales + 4);
    store_scales(FIELD(rest, 4, 15) | FIELD(words[1], 6, 3) << 4, to->group_mins + 4);
}

static void split_q4_k(const row_blocks *from, panel_span *to)
{
    chunk words[36], *quants = to->quants;
    load_chunks(from, 0, 36, words);
    load_super_scales(from, 0, to);
    store_k_scales(words + 1, to);
    for (int g = 0; g < 8; g++)
        for (int i = 0; i < 4; i++) {
            const chunk *at = words + 4 + g / 2 * 8 + i;
            *quants++ = NIBBLES(at[0], at[4], g % 2 * 4, 15);
        }
}

static void split_q5_k(const row_blocks *from, panel_span *to)
{
    chunk words[44], *quants = to->quants;
    load_chunks(from, 0, 44, words);
    load_super_scales(from, 0, to);
    store_k_scales(words + 1, to);
    for (int g = 0; g < 8; g++) {
        for (int i = 0; i < 4; i++) {
            const chunk *at = words + 12 + g / 2 * 8 + i;
            *quants++ = NIBBLES(at[0], at[4], g % 2 * 4, 15);
        }
        chunk fifth = {0};
        for (int i = 0; i < 8; i++)
            fifth |= FIELD(words[4 + i], g, 1) << i;
        *quants++ = fifth;
    }
}

static void split_q6_k(const row_blocks *from, panel_span *to)
{
    chunk words[52], *quants = to->quants;
    load_chunks(from, 0, 52, words);
    load_halves(from, 208, to->scales);
    for (int i = 0; i < 4; i++)
        store_scales(words[48 + i], to->group_scales + 4 * i);
    for (int g = 0; g < 16; g++) {
        const chunk *low = words + g / 8 * 16 + g % 4 * 4;
        for (int i = 0; i < 2; i++)
            *quants++ = NIBBLES(low[i], low[i + 2], g / 4 % 2 * 4, 15);
        chunk upper = {0};
        for (int i = 0; i < 4; i++)
            upper |= FIELD(words[32 + g / 8 * 8 + g % 2 * 4 + i], g / 2 % 4 * 2, 3) << 2 * i;
        *quants++ = upper;
    }
}

static void split_iq4_xs(const row_blocks *from, panel_span *to)
{
    chunk words[34];
    load_chunks(from, 0, 34, words);
    load_halves(from, 0, to->scales);
    memcpy(to->quants, words + 2, 32 * CHUNK);
    for (int g = 0; g < 8; g++) {
        const chunk low = words[1] >> 4 * g & 15, high = words[0] >> (16 + 2 * g) & 3;
        store_bytes((low | high << 4) - 32, to->group_scales[g]);
    }
}

/* ---- all types ------------------------------------------------------------------------------ */

/* Type of blocks. The layout of the packed matrix identifies it: each layout has one type. */
typedef struct {
    packed_layout layout;
    int n_bytes; /* of a block */
    void (*split)(const row_blocks *from, panel_span *to);
} block_type;

static const block_type BLOCK_TYPES[] = {
    {{4, 32, 0, 0, 0}, 18, split_q4_0},
    {{4, 32, 1, 0, 0}, 20, split_q4_1},
    {{4, 32, 0, 0, 1}, 18, split_q4_0}, /* IQ4_NL */
    {{5, 32, 0, 0, 0}, 22, split_q5_0},
    {{5, 32, 1, 0, 0}, 24, split_q5_1},
    {{8, 32, 0, 0, 0}, 34, split_q8_0},
    {{4, 16, 1, 16, 0}, 84, split_q2_k},
    {{4, 16, 0, 16, 0}, 110, split_q3_k},
    {{4, 32, 1, 8, 0}, 144, split_q4_k},
    {{5, 32, 1, 8, 0}, 176, split_q5_k},
    {{6, 16, 0, 16, 0}, 210, split_q6_k},
    {{4, 32, 0, 8, 1}, 136, split_iq4_xs},
};

/* Return the type that is packed in `layout`; NULL if there is none. */
static const block_type *block_type_of(packed_layout layout)
{
    const block_type *const end = BLOCK_TYPES + sizeof BLOCK_TYPES / sizeof *BLOCK_TYPES;
    for (const block_type *type = BLOCK_TYPES; type < end; type++)
        if (is_layout(type->layout, layout))
            return type;
    return NULL;
}

/* Set the padding of a panel of `n_rows` to zeros. */
static void clear_padding(panel_span *span, int n_rows)
{
    for (int row = n_rows; row < PANEL; row++) {
        span->scales[row] = span->mins[row] = 0;
        for (int i = 0; i < MAX_SPAN_CHUNKS; i++)
            span->quants[i][row] = 0;
        for (int i = 0; i < MAX_SPAN_GROUPS; i++)
            span->group_scales[i][row] = span->group_mins[i][row] = 0;
    }
}

/* True if no scale or minimum in float16 is infinite or NaN. */
INLINE int is_finite(const panel_span *span)
{
    int found = 0;
    for (int row = 0; row < PANEL; row++)
        found |= (span->scales[row] & 0x7c00) == 0x7c00 || (span->mins[row] & 0x7c00) == 0x7c00;
    return !found;
}

/* ---- called from Python --------------------------------------------------------------------- */

/* Write the panels of `w`, whose other fields are set, from the `blocks` of its rows, one row after
 * the other. Returns 0, with some panels not written, if a scale or minimum in float16 is infinite
 * or NaN, or if no type is packed in this layout; else 1. */
EXPORT int pack_blocks(const matrix *w, const uint8_t *blocks, uint8_t *to)
{
    const packed_layout layout = w->layout;
    const block_type *type = block_type_of(layout);
    if (!type)
        return 0;
    const int64_t n_spans = n_groups(w) / groups_per_span(layout);
    panel_span span = {.mins = {0}}; /* as they stay in layouts without */
    row_blocks from = {blocks, n_spans * type->n_bytes, PANEL};
    for (int64_t p = 0; p < n_panels(w); p++) {
        from.first = blocks + p * PANEL * from.stride;
        from.n_rows = rows_of_panel(w, p);
        for (int64_t i = 0; i < n_spans; i++, from.first += type->n_bytes) {
            type->split(&from, &span);
            if (from.n_rows < PANEL)
                clear_padding(&span, from.n_rows);
            if (!is_finite(&span))
                return 0;
            to = append_span(to, layout, &span);
        }
    }
    return 1;
}
