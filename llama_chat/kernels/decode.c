/* A forward pass over a few tokens, for a Llama model with packed weights.
 *
 * The same arithmetic as model/transformer.py, with activations in float32, and without a call per
 * operation: one team of threads goes through all layers. Every thread normalises and rounds the
 * whole residual stream for itself, which takes less time than to wait for another one, and then
 * computes its share of the rows of each matrix. They meet after each product.
 */

#include <math.h>
#include <string.h>

#include "packed.h"

#ifdef _OPENMP
#include <omp.h>
#else
#define omp_get_thread_num() 0
#define omp_get_num_threads() 1
#define omp_get_max_threads() 1
#endif

enum { MAX_ROWS = 8 };

/* Cached rows that one thread attends to at a time; the last run may be nearly twice as long. */
enum { RUN = 256, MAX_RUN = 2 * RUN + MAX_ROWS };

typedef struct {
    const float *attention_norm, *ffn_norm;
    packed_matrix wq, wk, wv, wo, w1, w2, w3;
} layer_weights;

typedef struct {
    int64_t dim, n_layers, n_heads, n_kv_heads, head_dim, hidden_dim;
    float norm_eps;
    int32_t narrow; /* whether the cache is bfloat16, or else float32 */
    const layer_weights *layers;
    const float *norm;
    packed_matrix output;
} model_weights;

/* The cache and the rotary tables at the tokens to be read. */
typedef struct {
    void *const *keys; /* for each layer (n_kv_heads, capacity, head_dim) */
    void *const *values;
    int64_t capacity, length; /* rows there are, and rows in use before these tokens */
    const float *cos, *sin;   /* (n_x, head_dim / 2) */
} cache_view;

/* What all threads share. */
typedef struct {
    float *x;                     /* (n_x, dim), the residual stream */
    float *q, *k, *v, *attention; /* (n_x, heads * head_dim) */
    float *gate, *up, *product;   /* (n_x, hidden_dim or dim) */
    float *partials;              /* for each run of each head, see attend() */
} shared_buffers;

/* What each thread has for itself. */
typedef struct {
    float *normed;  /* (n_x, dim) */
    float *queries; /* (n_x * group, head_dim) */
    float *scores;  /* (n_x * group, MAX_RUN) */
    float *row;     /* (head_dim) */
    uint8_t *rounded;
} own_buffers;

typedef struct {
    int64_t start, end;
} range;

INLINE int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }

/* The share of a thread of `n` items, in steps that fill cache lines. */
INLINE range share_of(int64_t n, int64_t step, int thread, int n_threads)
{
    int64_t steps = (n + step - 1) / step;
    range r = {steps * thread / n_threads * step, steps * (thread + 1) / n_threads * step};
    if (r.end > n)
        r.end = n;
    return r;
}

/* exp(x) to about 1e-7, in arithmetic that a compiler can spread over a vector. */
INLINE float fast_exp(float x)
{
    x = fminf(fmaxf(x, -87.0f), 88.0f);
    float t = x * 1.44269504f;
    int32_t whole = (int32_t)(t + (t < 0 ? -0.5f : 0.5f));
    float f = x - (float)whole * 0.693145752f - (float)whole * 1.42860677e-6f;
    float p = 1 + f * (1 + f * (0.5f + f * (0.166666667f + f * (0.0416666667f +
              f * (0.00833333333f + f * 0.00138888889f)))));
    int32_t bits = (whole + 127) * (1 << 23);
    float power;
    memcpy(&power, &bits, 4);
    return p * power;
}

INLINE void norm_row(const float *x, const float *weight, int64_t n, float eps, float *to)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    float factor = 1 / sqrtf(sum / (float)n + eps);
    for (int64_t i = 0; i < n; i++)
        to[i] = x[i] * factor * weight[i];
}

INLINE void norm_rows(const model_weights *w, const float *x, int n_x, const float *weight,
                      float *to)
{
    for (int m = 0; m < n_x; m++)
        norm_row(x + m * w->dim, weight, w->dim, w->norm_eps, to + m * w->dim);
}

/* Add a thread's share of the rows of a product to the residual stream. */
INLINE void add_rows(float *x, const float *product, int n_x, int64_t dim, range rows)
{
    for (int m = 0; m < n_x; m++)
        for (int64_t i = m * dim + rows.start; i < m * dim + rows.end; i++)
            x[i] += product[i];
}

/* Turn each pair of neighbours by its angle, as rope.py does. */
INLINE void rotate(const float *x, const float *cos, const float *sin, int64_t n, float scale,
                   float *to)
{
    for (int64_t i = 0; i < n / 2; i++) {
        float even = x[2 * i] * scale, odd = x[2 * i + 1] * scale;
        to[2 * i] = even * cos[i] - odd * sin[i];
        to[2 * i + 1] = even * sin[i] + odd * cos[i];
    }
}

INLINE void load_row(const void *from, int64_t row, int64_t n, int narrow, float *to)
{
    if (!narrow) {
        memcpy(to, (const float *)from + row * n, sizeof(float) * (size_t)n);
        return;
    }
    const uint16_t *halves = (const uint16_t *)from + row * n;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)halves[i] << 16;
        memcpy(to + i, &bits, 4);
    }
}

INLINE void store_row(void *to, int64_t row, int64_t n, int narrow, const float *from)
{
    if (!narrow) {
        memcpy((float *)to + row * n, from, sizeof(float) * (size_t)n);
        return;
    }
    for (int64_t i = 0; i < n; i++)
        ((uint16_t *)to)[row * n + i] = to_bfloat16(from[i]);
}

/* Attend with the queries of one head of keys to the cached rows of one run.
 *
 * The last run writes the keys and values of the new tokens before it reads them. For each query
 * `partial` gets the largest score, the sum of the weights and the weighted sum of the values.
 */
INLINE void attend(const model_weights *w, const cache_view *cache, int layer, int n_x, int64_t head,
                   range rows, int is_last, const shared_buffers *shared, const own_buffers *own,
                   float *partial, int narrow)
{
    const int64_t n = w->head_dim, group = w->n_heads / w->n_kv_heads;
    const int n_queries = n_x * (int)group;
    const float scale = 1 / sqrtf((float)n);
    const size_t element = narrow ? 2 : 4;
    char *keys = (char *)cache->keys[layer] + (size_t)(head * cache->capacity * n) * element;
    char *values = (char *)cache->values[layer] + (size_t)(head * cache->capacity * n) * element;
    float *row = own->row;
    for (int m = 0; m < n_x; m++) {
        const float *cos = cache->cos + m * n / 2, *sin = cache->sin + m * n / 2;
        for (int64_t j = 0; j < group; j++)
            rotate(shared->q + (m * w->n_heads + head * group + j) * n, cos, sin, n, scale,
                   own->queries + (m * group + j) * n);
        if (is_last) {
            rotate(shared->k + (m * w->n_kv_heads + head) * n, cos, sin, n, 1, row);
            store_row(keys, cache->length + m, n, narrow, row);
            store_row(values, cache->length + m, n, narrow,
                      shared->v + (m * w->n_kv_heads + head) * n);
        }
    }
    for (int64_t r = rows.start; r < rows.end; r++) {
        load_row(keys, r, n, narrow, row);
        for (int i = 0; i < n_queries; i++) {
            const float *query = own->queries + i * n;
            float dot = 0;
#pragma omp simd reduction(+ : dot)
            for (int64_t d = 0; d < n; d++)
                dot += query[d] * row[d];
            int visible = r <= cache->length + i / group;
            own->scores[i * MAX_RUN + r - rows.start] = visible ? dot : -INFINITY;
        }
    }
    const int64_t n_rows = rows.end - rows.start;
    for (int i = 0; i < n_queries; i++) {
        float *scores = own->scores + i * MAX_RUN, *to = partial + i * (n + 2);
        float most = -INFINITY, sum = 0;
#pragma omp simd reduction(max : most)
        for (int64_t r = 0; r < n_rows; r++)
            most = fmaxf(most, scores[r]);
#pragma omp simd reduction(+ : sum)
        for (int64_t r = 0; r < n_rows; r++) {
            scores[r] = scores[r] == -INFINITY ? 0 : fast_exp(scores[r] - most);
            sum += scores[r];
        }
        to[0] = most;
        to[1] = sum;
        memset(to + 2, 0, sizeof(float) * (size_t)n);
    }
    for (int64_t r = 0; r < n_rows; r++) {
        load_row(values, rows.start + r, n, narrow, row);
        for (int i = 0; i < n_queries; i++) {
            float weight = own->scores[i * MAX_RUN + r], *to = partial + i * (n + 2) + 2;
            for (int64_t d = 0; d < n; d++)
                to[d] += weight * row[d];
        }
    }
}

/* Put the runs of one query head together. */
INLINE void merge(const float *partials, int64_t n_runs, int64_t stride, int64_t n, float *to)
{
    float most = -INFINITY, sum = 0;
    for (int64_t r = 0; r < n_runs; r++)
        most = fmaxf(most, partials[r * stride]);
    memset(to, 0, sizeof(float) * (size_t)n);
    for (int64_t r = 0; r < n_runs; r++) {
        const float *partial = partials + r * stride;
        float factor = fast_exp(partial[0] - most);
        sum += factor * partial[1];
        for (int64_t d = 0; d < n; d++)
            to[d] += factor * partial[2 + d];
    }
    for (int64_t d = 0; d < n; d++)
        to[d] /= sum;
}

INLINE void activate(float *gate, const float *up, range rows)
{
    for (int64_t i = rows.start; i < rows.end; i++)
        gate[i] = gate[i] / (1 + fast_exp(-gate[i])) * up[i];
}

/* What own->rounded holds, for the next matrix that wants the same. */
typedef struct {
    const float *x;
    int32_t bits, group, has_mins;
} rounded_rows;

/* A thread's share of a product; returns which rows of the weights those are. */
INLINE range multiply_share(const packed_matrix *w, const float *x, int n_x, rounded_rows *rounded,
                            float *y, const own_buffers *own, int level, int thread, int n_threads)
{
    if (rounded->x != x || rounded->bits != w->bits || rounded->group != w->group ||
        rounded->has_mins != w->has_mins) {
        round_rows(w, x, 0, n_x, 0, n_x, own->rounded, level);
        *rounded = (rounded_rows){x, w->bits, w->group, w->has_mins};
    }
    range panels = share_of(n_panels(w), 1, thread, n_threads);
    multiply_panels(w, own->rounded, n_x, y, 0, panels.start, panels.end, level);
    range rows = {panels.start * PANEL, panels.end * PANEL};
    if (rows.end > w->n_rows)
        rows.end = w->n_rows;
    return rows;
}

/* All layers, as one thread of a team. */
INLINE void run_layers(const model_weights *w, const cache_view *cache, int n_x,
                       const shared_buffers *shared, const own_buffers *own, float *logits,
                       int level, int narrow)
{
    const int thread = omp_get_thread_num(), n_threads = omp_get_num_threads();
    const int64_t n = w->head_dim, group = w->n_heads / w->n_kv_heads;
    const int64_t n_runs = largest(1, cache->length / RUN), total = cache->length + n_x;
    const int64_t stride = n_x * group * (n + 2); /* of the partials of a run */
    rounded_rows rounded = {0};
    for (int64_t l = 0; l < w->n_layers; l++) {
        const layer_weights *layer = w->layers + l;
        rounded.x = NULL;
        norm_rows(w, shared->x, n_x, layer->attention_norm, own->normed);
#define MULTIPLY(matrix, from, to)                                                                 \
    multiply_share(matrix, from, n_x, &rounded, to, own, level, thread, n_threads)
        MULTIPLY(&layer->wq, own->normed, shared->q);
        MULTIPLY(&layer->wk, own->normed, shared->k);
        MULTIPLY(&layer->wv, own->normed, shared->v);
#pragma omp barrier
        range items = share_of(w->n_kv_heads * n_runs, 1, thread, n_threads);
        for (int64_t item = items.start; item < items.end; item++) {
            int64_t head = item / n_runs, run = item % n_runs;
            int is_last = run == n_runs - 1;
            range rows = {run * RUN, is_last ? total : (run + 1) * RUN};
            attend(w, cache, (int)l, n_x, head, rows, is_last, shared, own,
                   shared->partials + item * stride, narrow);
        }
#pragma omp barrier
        range heads = share_of(n_x * w->n_heads, 1, thread, n_threads);
        for (int64_t i = heads.start; i < heads.end; i++) {
            int64_t m = i / w->n_heads, head = i % w->n_heads;
            const float *first = shared->partials + head / group * n_runs * stride +
                                 (m * group + head % group) * (n + 2);
            merge(first, n_runs, stride, n, shared->attention + i * n);
        }
#pragma omp barrier
        rounded.x = NULL;
        range rows = MULTIPLY(&layer->wo, shared->attention, shared->product);
        add_rows(shared->x, shared->product, n_x, w->dim, rows);
#pragma omp barrier
        rounded.x = NULL;
        norm_rows(w, shared->x, n_x, layer->ffn_norm, own->normed);
        MULTIPLY(&layer->w3, own->normed, shared->up);
        rows = MULTIPLY(&layer->w1, own->normed, shared->gate);
        for (int m = 0; m < n_x; m++)
            activate(shared->gate + m * w->hidden_dim, shared->up + m * w->hidden_dim, rows);
#pragma omp barrier
        rounded.x = NULL;
        rows = MULTIPLY(&layer->w2, shared->gate, shared->product);
        add_rows(shared->x, shared->product, n_x, w->dim, rows);
#pragma omp barrier
    }
    rounded.x = NULL;
    norm_rows(w, shared->x, n_x, w->norm, own->normed);
    MULTIPLY(&w->output, own->normed, logits);
}

#define LAYERS(target, name)                                                                       \
    target static void name(const model_weights *w, const cache_view *cache, int n_x,              \
                            const shared_buffers *shared, const own_buffers *own, float *logits,   \
                            int level)                                                             \
    {                                                                                              \
        w->narrow ? run_layers(w, cache, n_x, shared, own, logits, level, 1)                       \
                  : run_layers(w, cache, n_x, shared, own, logits, level, 0);                      \
    }

LAYERS(, layers_portable)
#if X86
LAYERS(TARGET_AVX2, layers_avx2)
LAYERS(TARGET_AVX512, layers_avx512)
#endif

static void (*const LAYERS_OF[])(const model_weights *, const cache_view *, int,
                                 const shared_buffers *, const own_buffers *, float *, int) = {
    layers_portable,
#if X86
    layers_avx2,
    layers_avx512,
#endif
};

/* ---- memory -------------------------------------------------------------------------------- */

/* Takes `n` floats of `*next`, to which the start of a cache line is added; a NULL only counts. */
static float *take(char **next, int64_t n)
{
    float *taken = (float *)*next;
    *next += (n * (int64_t)sizeof(float) + 63) / 64 * 64;
    return taken;
}

static void lay_out_shared(const model_weights *w, int n_x, int64_t length, char **next,
                           shared_buffers *b)
{
    int64_t heads = w->n_heads * w->head_dim, kv_heads = w->n_kv_heads * w->head_dim;
    int64_t n_runs = largest(1, length / RUN);
    b->q = take(next, n_x * heads);
    b->k = take(next, n_x * kv_heads);
    b->v = take(next, n_x * kv_heads);
    b->attention = take(next, n_x * heads);
    b->gate = take(next, n_x * w->hidden_dim);
    b->up = take(next, n_x * w->hidden_dim);
    b->product = take(next, n_x * w->dim);
    b->partials = take(next, n_x * w->n_heads * n_runs * (w->head_dim + 2));
}

static void lay_out_own(const model_weights *w, int n_x, char **next, own_buffers *b)
{
    int64_t group = w->n_heads / w->n_kv_heads, rounded = rounded_bytes(&w->output);
    for (int64_t l = 0; l < w->n_layers; l++) {
        const layer_weights *layer = w->layers + l;
        const packed_matrix *matrices[] = {&layer->wq, &layer->wk, &layer->wv, &layer->wo,
                                           &layer->w1, &layer->w2, &layer->w3};
        for (int i = 0; i < 7; i++)
            rounded = largest(rounded, rounded_bytes(matrices[i]));
    }
    b->normed = take(next, n_x * w->dim);
    b->queries = take(next, n_x * group * w->head_dim);
    b->scores = take(next, n_x * group * MAX_RUN);
    b->row = take(next, w->head_dim);
    b->rounded = (uint8_t *)take(next, (n_x * rounded + 3) / 4);
}

/* Bytes that `forward` needs beside its arguments. */
int64_t forward_scratch_bytes(const model_weights *w, int n_x, int64_t length)
{
    char *start = NULL, *next = start, *own_start;
    shared_buffers shared;
    own_buffers own;
    lay_out_shared(w, n_x, length, &next, &shared);
    own_start = next;
    lay_out_own(w, n_x, &next, &own);
    return own_start - start + (next - own_start) * omp_get_max_threads();
}

/* Reads 1 to 8 tokens: x (n_x, dim) holds their embeddings, and is overwritten.
 *
 * Their keys and values are written behind `length` rows of the cache; logits (n_x, vocab_size).
 * `scratch` holds forward_scratch_bytes() bytes.
 */
void forward(const model_weights *w, const cache_view *cache, float *x, int n_x, float *logits,
             char *scratch, int level)
{
    shared_buffers shared = {.x = x};
    char *own_start = scratch;
    lay_out_shared(w, n_x, cache->length, &own_start, &shared);
#pragma omp parallel
    {
        own_buffers own;
        char *next = own_start;
        for (int thread = 0; thread <= omp_get_thread_num(); thread++)
            lay_out_own(w, n_x, &next, &own);
        LAYERS_OF[level](w, cache, n_x, &shared, &own, logits, level);
    }
}
