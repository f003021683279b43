/* The KV cache, and attention to it. */

#ifndef ATTENTION_H
#define ATTENTION_H

#include "arena.h"
#include "numbers.h"
#include "work_shares.h"

/* Number of new tokens of a sequence up to which results equal, bit for bit, those of passes over
 * one token each; see attention.c. */
enum { MAX_EXACT_BATCH = 8 };

/* Types of cached keys and values. */
enum { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, FLOAT16 = 3 };

/* Rows of a cache that lie in one piece of memory. Sequences that begin alike share the segments of
 * their prefix. */
typedef struct {
    void *const *keys; /* for each layer (n_kv_heads, capacity, head_dim) */
    void *const *values;
    float *const *key_scales; /* INT8 only: for each layer (n_kv_heads, capacity) */
    float *const *value_scales;
    int64_t capacity, start; /* rows allocated, and the row of the sequence that is the first */
} cache_segment;

/* The cache of one sequence, and its new tokens in a pass. */
typedef struct {
    int32_t kind, n_new;
    int64_t n_heads, n_kv_heads, head_dim;
    const cache_segment *segments; /* in order; the last one takes the new rows */
    int64_t n_segments, length;    /* rows in use before the new tokens */
    const float *cos, *sin;        /* rotary tables of the new tokens (n_new, head_dim / 2) */
} kv_cache;

/* Tokens of a sequence in a pass up to which their results are those of passes over one token. */
INLINE int is_exact(const kv_cache *sequence) { return sequence->n_new <= MAX_EXACT_BATCH; }

/* Heads are padded to a multiple of this number of floats, the widest register of all levels. */
enum { PADDING = 16 };

INLINE int64_t padded_head(const kv_cache *cache) { return round_up(cache->head_dim, PADDING); }

/* Query heads that share one head of keys and values. */
INLINE int64_t queries_per_kv_head(const kv_cache *cache)
{
    return cache->n_heads / cache->n_kv_heads;
}

/* ---- decode attention ----------------------------------------------------------------------- */

/* Queries multiplied with a row of the cache while it is in registers; limit on the rows of a
 * split. */
enum { QUERY_BATCH = 4, MAX_SPLIT = 256 };

/* Rows of a split: few if there are few heads, so that every thread has enough work. */
INLINE int64_t split_rows(const kv_cache *cache) { return cache->n_kv_heads < 8 ? 64 : MAX_SPLIT; }

INLINE int64_t n_splits(const kv_cache *cache)
{
    return round_up(cache->length + cache->n_new, split_rows(cache)) / split_rows(cache);
}

/* One split of a head of keys, and the sequences that attend to it: several, if they begin with the
 * same rows in memory. */
typedef struct {
    const kv_cache *sequences;
    int n_sequences;
    int64_t head, number;
} split_item;

/* Scratch memory of a thread; `width` is padded_head(). */
typedef struct {
    float *queries; /* (QUERY_BATCH, width), padded with zeros */
    float *scores;  /* (QUERY_BATCH, MAX_SPLIT) */
    float *rows;    /* (2, MAX_SPLIT, width): copies of keys and values */
} decode_buffers;

/* Floats of a query's partial result for one split: the maximum score, the sum of the exponentials,
 * and the sum of the values weighted by them. */
INLINE int64_t partial_floats(const kv_cache *cache) { return padded_head(cache) + 2; }

/* Floats of the partial results of all queries of a head of keys, for one split. */
INLINE int64_t split_stride(const kv_cache *cache)
{
    return cache->n_new * queries_per_kv_head(cache) * partial_floats(cache);
}

/* Floats of all partial results of a sequence. */
INLINE int64_t sequence_partials(const kv_cache *cache)
{
    return is_exact(cache) ? cache->n_kv_heads * n_splits(cache) * split_stride(cache) : 0;
}

/* ---- prefill attention ---------------------------------------------------------------------- */

/* Sizes of blocks of queries and of keys, queries in a tile of their products, and the most that they
 * are padded to a multiple of. */
enum { QUERY_BLOCK = 128, KEY_BLOCK = 64, TILE_ROWS = 4, MAX_QUERY_STEP = 16 };

/* Scratch memory of a thread; `n_rows` is the number of queries of a block. */
typedef struct {
    float *queries; /* (n_rows, width) */
    float *sums;    /* (n_rows, width), of weighted values */
    float *scores;  /* (n_rows, KEY_BLOCK) */
    float *keys;    /* (width, KEY_BLOCK), transposed */
    float *values;  /* (KEY_BLOCK, width) */
    float *max;     /* (n_rows), the maximum score so far */
    float *totals;  /* (n_rows, PADDING), sums of the exponentials so far */
    float *rows;    /* (PADDING, width) */
} prefill_buffers;

/* ---- attention.c ---------------------------------------------------------------------------- */

typedef struct kernel_set kernel_set;

/* Memory for attention: shared by all threads, and of each thread. */
typedef struct {
    float *partials;
    decode_buffers decode;
    prefill_buffers prefill;
} attention_buffers;

void allocate_shared_attention(const kv_cache *sequences, int n_sequences, arena *memory,
                               attention_buffers *buffers);
void allocate_thread_attention(const kv_cache *sequences, int n_sequences, arena *memory,
                               attention_buffers *buffers);

/* Attend causally with the rotated queries q of the new tokens of each sequence to its cache, which
 * has their rows already; out (n_x, n_heads * head_dim). Called by all threads of a team; contains
 * barriers. */
void attend(const kernel_set *kernels, const kv_cache *sequences, int n_sequences, int64_t layer,
            const float *q, float *out, const attention_buffers *buffers, team_phase *phase);

#endif
