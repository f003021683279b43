/* Causal attention of a block of queries, for any instruction set.
 *
 * Blocks of queries are multiplied with blocks of keys, and the softmax is rescaled after each
 * (Dao et al. 2022, https://arxiv.org/abs/2205.14135). The products, and the format of their
 * operands, are defined in prefill_float.h or prefill_bf16.h, which include this.
 */

#ifndef PREFILL_ATTENTION_H
#define PREFILL_ATTENTION_H

#include "attention.h"

/* Steps of queries and of keys in which the level multiplies. */
#ifndef QUERY_STEP
#define QUERY_STEP TILE_ROWS
#define KEY_STEP PADDING
#endif
_Static_assert((int)QUERY_STEP <= MAX_QUERY_STEP, "queries are not padded so far");

/* Turn the scores of one query for `n_keys` keys, of which the first `n_visible` are not masked,
 * into exponentials relative to the maximum so far; rescale the sums if that has grown. This is the
 * online softmax of Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867. Totals are kept
 * by the lane and added up in the end: a sum across lanes would take as long as the exponentials. */
INLINE void online_softmax(float *scores, int64_t n_keys, int64_t n_visible, float *max,
                           float *totals, float *sums, int64_t width)
{
    float new_max = *max, new_totals[PADDING];
    for (int64_t r = n_visible; r < n_keys; r++)
        scores[r] = -INFINITY;
#pragma omp simd reduction(max : new_max)
    for (int64_t r = 0; r < n_keys; r++)
        new_max = scores[r] > new_max ? scores[r] : new_max;
    if (new_max > *max) {
        float factor = *max == -INFINITY ? 0 : fast_exp(*max - new_max);
        for (int64_t i = 0; i < PADDING; i++)
            totals[i] *= factor;
        for (int64_t d = 0; d < width; d++)
            sums[d] *= factor;
        *max = new_max;
    }
    memcpy(new_totals, totals, sizeof new_totals);
    for (int64_t r = 0; r < n_keys; r += PADDING)
#pragma omp simd
        for (int64_t i = 0; i < PADDING; i++) {
            const float score = scores[r + i];
            scores[r + i] = score == -INFINITY ? 0 : fast_exp(score - new_max);
            new_totals[i] += scores[r + i];
        }
    memcpy(totals, new_totals, sizeof new_totals);
}

/* Attend with all queries of one head of keys of the `tokens`. */
INLINE void attend_tokens(const kv_cache *cache, int64_t layer, const float *q, int64_t head,
                          range tokens, float *out, const prefill_buffers *b)
{
    const int64_t n = cache->head_dim, width = padded_head(cache);
    const int64_t group = queries_per_kv_head(cache);
    const int64_t n_queries = (tokens.end - tokens.start) * group;
    const int64_t rows = round_up(n_queries, QUERY_STEP);
    memset(b->queries, 0, sizeof(float) * (size_t)(rows * width));
    memset(b->sums, 0, sizeof(float) * (size_t)(rows * width));
    memset(b->totals, 0, sizeof(float) * (size_t)(rows * PADDING));
    for (int64_t i = 0; i < n_queries; i++) {
        int64_t at = ((tokens.start + i / group) * cache->n_heads + head * group + i % group) * n;
        memcpy(b->queries + i * width, q + at, sizeof(float) * (size_t)n);
        b->max[i] = -INFINITY;
    }
    convert_rows(b->queries, rows, width, width);
    const int64_t total = cache->length + tokens.end;
    for (int64_t start = 0; start < total; start += KEY_BLOCK) {
        const range keys = {start, start + KEY_BLOCK < total ? start + KEY_BLOCK : total};
        /* Queries of tokens before all of these keys are skipped: they attend to none of them. */
        int64_t skipped = start - cache->length - tokens.start;
        skipped = skipped > 0 ? skipped * group / QUERY_STEP * QUERY_STEP : 0;
        const int64_t n_keys = round_up(keys.end - keys.start, KEY_STEP);
        float *scores = b->scores + skipped * KEY_BLOCK;
        memset(scores, 0, sizeof(float) * (size_t)((rows - skipped) * KEY_BLOCK));
        load_block(cache, layer, head, keys, b);
        multiply_block(b->queries + skipped * width, width, b->keys, KEY_BLOCK, scores, KEY_BLOCK,
                       rows - skipped, width, n_keys);
        for (int64_t i = skipped; i < n_queries; i++) {
            int64_t n_visible = cache->length + tokens.start + i / group + 1 - start;
            n_visible = n_visible < 0 ? 0 : n_visible > n_keys ? n_keys : n_visible;
            online_softmax(b->scores + i * KEY_BLOCK, n_keys, n_visible, b->max + i,
                           b->totals + i * PADDING, b->sums + i * width, width);
        }
        convert_rows(scores, rows - skipped, n_keys, KEY_BLOCK);
        multiply_block(scores, KEY_BLOCK, b->values, width, b->sums + skipped * width, width,
                       rows - skipped, n_keys, width);
    }
    for (int64_t i = 0; i < n_queries; i++) {
        int64_t at = ((tokens.start + i / group) * cache->n_heads + head * group + i % group) * n;
        float total = 0;
        for (int64_t j = 0; j < PADDING; j++)
            total += b->totals[i * PADDING + j];
        for (int64_t d = 0; d < n; d++)
            out[at + d] = b->sums[i * width + d] / total;
    }
}

#endif
