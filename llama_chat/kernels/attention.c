/* Grouped-query attention of new tokens to a cache.
 *
 * Decode attention, of a few tokens, is limited by reading the cache. The cache is cut into splits,
 * which are distributed over the threads; each split is read once for all queries of its head, and
 * the partial results are merged (Flash-Decoding, Dao et al. 2023,
 * https://crfm.stanford.edu/2023/10/12/flashdecoding.html). Splits begin at fixed rows, whatever
 * the number of tokens, sequences or threads, so that results of up to MAX_EXACT_BATCH tokens of a
 * sequence equal, bit for bit, those of passes over one token. Sequences of so few tokens come
 * first in a pass.
 *
 * Prefill attention, of more tokens, is limited by arithmetic: blocks of queries are distributed
 * over the threads, and multiplied with blocks of keys.
 */

#include "attention.h"

#include "kernel_set.h"

/* ---- decode --------------------------------------------------------------------------------- */

/* Row of a sequence that is the first after one of its segments, new ones not counted. */
INLINE int64_t segment_end(const kv_cache *cache, int64_t segment)
{
    return segment + 1 < cache->n_segments ? cache->segments[segment + 1].start : cache->length;
}

/* Whole splits that two sequences begin with, in the same memory. */
static int64_t shared_splits(const kv_cache *a, const kv_cache *b, int64_t layer)
{
    int64_t rows = 0;
    for (int64_t i = 0; i < a->n_segments && i < b->n_segments; i++) {
        if (a->segments[i].keys[layer] != b->segments[i].keys[layer] ||
            a->segments[i].start != b->segments[i].start)
            break;
        rows = min(segment_end(a, i), segment_end(b, i));
        if (segment_end(a, i) != segment_end(b, i))
            break;
    }
    return rows / split_rows(a);
}

/* Merge the partial results of one query head of one token; `i` counts them. */
static void merge_splits(const kernel_set *kernels, const kv_cache *cache, int64_t i,
                         const float *partials, float *out)
{
    const int64_t group = queries_per_kv_head(cache), splits = n_splits(cache);
    const int64_t m = i / cache->n_heads, head = i % cache->n_heads, stride = split_stride(cache);
    const float *first = partials + head / group * splits * stride +
                         (m * group + head % group) * partial_floats(cache);
    kernels->merge_partials(first, splits, stride, cache->head_dim, out + i * cache->head_dim);
}

/* ---- prefill -------------------------------------------------------------------------------- */

/* Tokens in a block of queries of one head of keys. */
INLINE int64_t block_tokens(const kv_cache *cache)
{
    return max(QUERY_BLOCK * cache->n_kv_heads / cache->n_heads, 1);
}

INLINE int64_t n_blocks(const kv_cache *cache)
{
    return round_up(cache->n_new, block_tokens(cache)) / block_tokens(cache);
}

static void attend_block(const kernel_set *kernels, const kv_cache *cache, int64_t layer,
                         const float *q, int64_t item, float *out, const prefill_buffers *buffers)
{
    /* The last tokens, which attend to the most keys, go first. */
    const int64_t step = block_tokens(cache);
    const int64_t first = (n_blocks(cache) - 1 - item / cache->n_kv_heads) * step;
    const range tokens = {first, min(first + step, cache->n_new)};
    kernels->attend_block(cache, layer, q, item % cache->n_kv_heads, tokens, out, buffers);
}

/* ---- both ----------------------------------------------------------------------------------- */

/* Attention of one layer; the arguments of attend(). */
typedef struct {
    const kernel_set *kernels;
    const kv_cache *sequences;
    int n_sequences, n_exact; /* the exact ones come first */
    int64_t n_exact_rows, layer;
    const float *q;
    float *out;
    const attention_buffers *buffers;
} attention_pass;

/* A run of consecutive work items, for each head of keys: blocks of a prompt, splits of one
 * sequence, or splits that a family shares.
 *
 * A family is a group of sequences that are neighbours in a pass and begin with the same rows in
 * memory. They attend to the shared splits together, so that these are read once.
 *
 * Prompts come first, since their blocks take longest, and then the splits of each family: short
 * items are left for the end, when threads wait for each other. */
typedef struct {
    const kv_cache *sequence; /* whose items they are, or the first of the family */
    int n_together;           /* sequences that attend to them */
    int n_in_family;          /* sequences of the family from this one on */
    int n_left, n_later;      /* sequences of the pass from this one on, and those that come last */
    int64_t n_shared;         /* splits of the family */
    int64_t n_items;
    int64_t number;           /* of runs before this one */
    int64_t row;              /* of the first new token of the sequence */
    float *partials;          /* of the sequence */
} item_run;

static void begin_sequence(item_run *run)
{
    const kv_cache *cache = run->sequence;
    const int64_t n = is_exact(cache) ? n_splits(cache) - run->n_shared : n_blocks(cache);
    run->n_together = 1;
    run->n_items = cache->n_kv_heads * n;
}

/* Begin the family of a sequence and of those after it that share as many splits as the next
 * one. */
static void begin_family(item_run *run, int64_t layer)
{
    const kv_cache *first = run->sequence;
    run->n_in_family = 1;
    run->n_shared = 0;
    for (int i = 1; i < run->n_left && is_exact(first) && is_exact(first + i); i++) {
        const int64_t n_shared = shared_splits(first, first + i, layer);
        if (n_shared == 0 || n_shared < run->n_shared)
            break;
        run->n_shared = i == 1 ? n_shared : run->n_shared;
        run->n_in_family++;
    }
    run->n_together = run->n_in_family;
    run->n_items = run->n_shared * first->n_kv_heads;
    if (run->n_in_family == 1)
        begin_sequence(run);
}

static item_run first_run(const attention_pass *pass)
{
    const int n_prompts = pass->n_sequences - pass->n_exact;
    item_run run = {.sequence = pass->sequences, .n_left = pass->n_exact,
                    .partials = pass->buffers->partials};
    if (n_prompts) {
        run.sequence += pass->n_exact;
        run.row = pass->n_exact_rows;
        run.n_left = n_prompts;
        run.n_later = pass->n_exact;
    }
    begin_family(&run, pass->layer);
    return run;
}

/* Go on to the next items; `n_left` is 0 after the last. */
static void go_to_next(item_run *run, const attention_pass *pass)
{
    run->number++;
    if (run->n_together > 1) {
        begin_sequence(run);
        return;
    }
    run->row += run->sequence->n_new;
    run->partials += sequence_partials(run->sequence);
    run->sequence++;
    run->n_left--;
    run->n_in_family--;
    if (run->n_left == 0 && run->n_later) {
        run->sequence = pass->sequences;
        run->row = 0;
        run->n_left = run->n_later;
        run->n_later = 0;
    }
    if (run->n_in_family)
        begin_sequence(run);
    else if (run->n_left)
        begin_family(run, pass->layer);
}

static void attend_item(const attention_pass *pass, const item_run *run, int64_t item)
{
    const kv_cache *cache = run->sequence;
    const int64_t start = run->row * cache->n_heads * cache->head_dim;
    const float *q = pass->q + start;
    if (!is_exact(cache)) {
        attend_block(pass->kernels, cache, pass->layer, q, item, pass->out + start,
                     &pass->buffers->prefill);
        return;
    }
    const int64_t n = run->n_items / cache->n_kv_heads;
    const int64_t first = run->n_together > 1 ? 0 : run->n_shared;
    const split_item split = {cache, run->n_together, item / n, first + item % n};
    pass->kernels->attend_to_split(&split, pass->layer, q, &pass->buffers->decode, run->partials);
}

/* Items of a run in each thread's share. */
INLINE int64_t items_of_share(const item_run *run, int n_threads)
{
    return round_up(run->n_items, n_threads) / n_threads;
}

/* Attend to this thread's share of the items: a part of each run, with neighbouring splits, so that
 * long items are divided evenly. */
static void attend_items(const attention_pass *pass, const team_phase *phase)
{
    const int n_threads = phase->me.n_threads;
    int64_t share = 0, first = 0; /* items of a share, and the first one of the run in it */
    item_run run = first_run(pass);
    for (; run.n_left; go_to_next(&run, pass))
        share += items_of_share(&run, n_threads);
    run = first_run(pass);
    for (range part; take_part(phase, share * n_threads, 1, 1, &part);) {
        const int64_t at = part.start % share;
        if (at < first) {
            run = first_run(pass);
            first = 0;
        }
        for (; at - first >= items_of_share(&run, n_threads); go_to_next(&run, pass))
            first += items_of_share(&run, n_threads);
        /* The last part of a run may be smaller; another thread gets it each time. */
        const int64_t owner = (part.start / share + run.number) % n_threads;
        const int64_t item = owner * items_of_share(&run, n_threads) + at - first;
        if (item < run.n_items)
            attend_item(pass, &run, item);
    }
}

void allocate_shared_attention(const kv_cache *sequences, int n_sequences, arena *memory,
                               attention_buffers *buffers)
{
    int64_t n = 0;
    for (int i = 0; i < n_sequences; i++)
        n += sequence_partials(sequences + i);
    buffers->partials = arena_floats(memory, n);
}

void allocate_thread_attention(const kv_cache *sequences, int n_sequences, arena *memory,
                               attention_buffers *buffers)
{
    const int64_t width = padded_head(sequences);
    decode_buffers *d = &buffers->decode;
    if (is_exact(sequences)) { /* the first one, if any is */
        d->queries = arena_floats(memory, QUERY_BATCH * width);
        d->scores = arena_floats(memory, QUERY_BATCH * MAX_SPLIT);
        d->rows = arena_floats(memory, 2 * MAX_SPLIT * width);
    }
    if (is_exact(sequences + n_sequences - 1))
        return;
    prefill_buffers *p = &buffers->prefill;
    const int64_t n_queries = block_tokens(sequences) * queries_per_kv_head(sequences);
    const int64_t n_rows = round_up(n_queries, MAX_QUERY_STEP);
    p->queries = arena_floats(memory, n_rows * width);
    p->sums = arena_floats(memory, n_rows * width);
    p->scores = arena_floats(memory, n_rows * KEY_BLOCK);
    p->keys = arena_floats(memory, width * KEY_BLOCK);
    p->values = arena_floats(memory, KEY_BLOCK * width);
    p->max = arena_floats(memory, n_rows);
    p->totals = arena_floats(memory, n_rows * PADDING);
    p->rows = arena_floats(memory, PADDING * width);
}

void attend(const kernel_set *kernels, const kv_cache *sequences, int n_sequences, int64_t layer,
            const float *q, float *out, const attention_buffers *buffers, team_phase *phase)
{
    attention_pass pass = {.kernels = kernels, .sequences = sequences, .n_sequences = n_sequences,
                           .layer = layer, .q = q, .out = out, .buffers = buffers};
    for (; pass.n_exact < n_sequences && is_exact(sequences + pass.n_exact); pass.n_exact++)
        pass.n_exact_rows += sequences[pass.n_exact].n_new;
    if (pass.n_exact)
        memset(buffers->decode.queries, 0,
               sizeof(float) * (size_t)(QUERY_BATCH * padded_head(sequences)));
    attend_items(&pass, phase);
    end_phase(phase);
    if (!pass.n_exact)
        return;
    const kv_cache *cache = sequences;
    const float *partials = buffers->partials;
    const range queries = share_of(pass.n_exact_rows * sequences->n_heads, phase->me);
    int64_t first = 0; /* of the queries of this sequence */
    for (int64_t i = queries.start; i < queries.end; i++) {
        for (; i - first >= cache->n_new * cache->n_heads; cache++) {
            first += cache->n_new * cache->n_heads;
            partials += sequence_partials(cache);
        }
        merge_splits(kernels, cache, i - first, partials, out + first * cache->head_dim);
    }
    end_phase(phase);
}
