/* A forward pass of a Llama model with packed weights.
 *
 * The same arithmetic as model/transformer.py, with activations in float32, and without a call per
 * operation: one team of threads goes through the layers. Each computes its share of the rows of
 * every matrix, and what can be done with them at once; they meet where one needs what others have.
 *
 * Of a few tokens, every thread normalises and rounds all activations for itself, which takes less
 * time than to wait for another one. Of many, they share that work, too.
 */

#include <math.h>
#include <time.h>

#include "attention.h"

typedef struct {
    const float *attention_norm, *ffn_norm;
    packed_matrix wq, wk, wv, wo, w1, w2, w3;
} layer_weights;

typedef struct {
    int64_t dim, n_layers, hidden_dim;
    float norm_eps;
    const layer_weights *layers;
    const float *norm;
    packed_matrix output;
} model_weights;

/* Where the time of a pass goes. */
typedef struct {
    double projections, attention, feed_forward, output;
} seconds_of;

/* What all threads share. */
typedef struct {
    float *x;                     /* (n_x, dim), the residual stream */
    float *q, *k, *v, *attention; /* (n_x, heads * head_dim) */
    float *gate, *up;             /* (n_x, hidden_dim) */
    uint8_t *rounded[2];          /* of many tokens, in groups of 16 and of 32 */
    void *partials;               /* of attention */
    float *pairs;                 /* (tile, vocab_size), of the output */
} shared_buffers;

/* What each thread has for itself. */
typedef struct {
    float *normed;       /* (tile, dim) */
    uint8_t *rounded[2]; /* of a few tokens, a tile at most */
    void *attention;
} own_buffers;

/* One thread's view of a pass. */
typedef struct {
    const model_weights *w;
    const kv_cache *cache;
    const shared_buffers *shared;
    own_buffers own;
    int n_x, level, thread, n_threads;
    uint8_t *const *rounded; /* the activations that come next, shared or own */
} team_member;

INLINE int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* ---- activations --------------------------------------------------------------------------- */

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

INLINE void activate(float *gate, const float *up, range columns)
{
    for (int64_t i = columns.start; i < columns.end; i++)
        gate[i] = gate[i] / (1 + fast_exp(-gate[i])) * up[i];
}

INLINE void add(float *x, const float *product, range columns)
{
    for (int64_t i = columns.start; i < columns.end; i++)
        x[i] += product[i];
}

#define ROWWISE(target, level, ...)                                                                \
    target static void norm_row_##level(const float *x, const float *weight, int64_t n, float eps, \
                                        float *to)                                                 \
    {                                                                                              \
        norm_row(x, weight, n, eps, to);                                                           \
    }                                                                                              \
    target static void activate_##level(float *gate, const float *up, range columns)               \
    {                                                                                              \
        activate(gate, up, columns);                                                               \
    }                                                                                              \
    target static void add_##level(float *x, const float *product, range columns)                  \
    {                                                                                              \
        add(x, product, columns);                                                                  \
    }

FOR_LEVELS(ROWWISE)
static void (*const NORM_ROW[])(const float *, const float *, int64_t, float, float *) =
    BY_LEVEL(norm_row);
static void (*const ACTIVATE[])(float *, const float *, range) = BY_LEVEL(activate);
static void (*const ADD[])(float *, const float *, range) = BY_LEVEL(add);

/* ---- one step of a thread ------------------------------------------------------------------ */

/* Round x (n_x, n), normalised if there is a `norm`, for the matrices that come next. */
static void round_input(team_member *t, const float *x, int64_t n, const float *norm,
                        const packed_matrix *const *matrices, int n_matrices)
{
    const int tile = largest_tile(t->level), is_shared = t->n_x > tile;
    int wanted[2] = {0, 0};
    for (int i = 0; i < n_matrices; i++)
        wanted[matrices[i]->group == 32] = 1;
    t->rounded = is_shared ? t->shared->rounded : t->own.rounded;
    const int step = is_shared ? t->n_threads : 1, first = is_shared ? t->thread : 0;
    for (int start = first * tile; start < t->n_x; start += step * tile)
        for (int m = start; m < t->n_x && m < start + tile;) {
            const int size = tile_size(t->n_x - m, t->level);
            const float *rows = x + m * n;
            if (norm) {
                for (int i = 0; i < size; i++)
                    NORM_ROW[t->level](rows + i * n, norm, n, t->w->norm_eps, t->own.normed + i * n);
                rows = t->own.normed;
            }
            for (int i = 0; i < 2; i++)
                if (wanted[i])
                    round_tile(rows, 0, n, i ? 32 : 16, size,
                               t->rounded[i] + m * rounded_bytes(n, i ? 32 : 16), t->level);
            m += size;
        }
    if (is_shared) {
#pragma omp barrier
    }
}

/* This thread's share of a product, in rows of the weights: whole panels that hold a multiple of
 * `together` rows. */
static range share_of(const team_member *t, const packed_matrix *w, int64_t together)
{
    int64_t step = PANEL;
    while (step % together)
        step += PANEL;
    int64_t steps = (w->n_rows + step - 1) / step;
    range rows = {steps * t->thread / t->n_threads * step,
                  steps * (t->thread + 1) / t->n_threads * step};
    if (rows.end > w->n_rows)
        rows.end = w->n_rows;
    return rows;
}

/* Compute it, in y (n_x, rows of w); returns which rows that are. */
static range multiply_share(const team_member *t, const packed_matrix *w, int64_t together, float *y,
                            int how)
{
    range rows = share_of(t, w, together);
    multiply_panels(w, t->rounded[w->group == 32], t->n_x, y, how, rows.start / PANEL,
                    (rows.end + PANEL - 1) / PANEL, t->level);
    return rows;
}

static void run_layer(team_member *t, int64_t l, seconds_of *seconds)
{
    const layer_weights *layer = t->w->layers + l;
    const shared_buffers *b = t->shared;
    const kv_cache *cache = t->cache;
    const int64_t dim = t->w->dim, hidden = t->w->hidden_dim, together = rows_together(cache);
    const double began = now();
    round_input(t, b->x, dim, layer->attention_norm,
                (const packed_matrix *[]){&layer->wq, &layer->wk, &layer->wv}, 3);
    range rows = multiply_share(t, &layer->wq, 1, b->q, AS_FLOATS);
    rotate_queries(cache, b->q, t->n_x, rows, t->level);
    rows = multiply_share(t, &layer->wk, together, b->k, AS_FLOATS);
    store_keys(cache, l, b->k, t->n_x, rows, t->level);
    rows = multiply_share(t, &layer->wv, together, b->v, AS_FLOATS);
    store_values(cache, l, b->v, t->n_x, rows, t->level);
#pragma omp barrier
    const double projected = now();
    attend(cache, l, b->q, t->n_x, b->attention, b->partials, t->own.attention, t->level);
    const double attended = now();
    round_input(t, b->attention, layer->wo.n_columns, NULL, (const packed_matrix *[]){&layer->wo},
                1);
    multiply_share(t, &layer->wo, 1, b->x, ADDED);
#pragma omp barrier
    const double added = now();
    round_input(t, b->x, dim, layer->ffn_norm, (const packed_matrix *[]){&layer->w1, &layer->w3},
                2);
    multiply_share(t, &layer->w3, 1, b->up, AS_FLOATS);
    range columns = multiply_share(t, &layer->w1, 1, b->gate, AS_FLOATS);
    for (int m = 0; m < t->n_x; m++)
        ACTIVATE[t->level](b->gate + m * hidden, b->up + m * hidden, columns);
#pragma omp barrier
    round_input(t, b->gate, hidden, NULL, (const packed_matrix *[]){&layer->w2}, 1);
    multiply_share(t, &layer->w2, 1, b->x, ADDED);
#pragma omp barrier
    if (t->thread == 0 && seconds) {
        seconds->projections += projected - began + added - attended;
        seconds->attention += attended - projected;
        seconds->feed_forward += now() - added;
    }
}

/* Logits (n_x, vocab_size) of the tokens whose residual stream t->shared->x holds.
 *
 * Of all matrices this is the one in which rounding shows most, and it is read from memory anyway:
 * what 8 bits leave of each activation is rounded to 8 bits once more, as a row of its own.
 */
static void run_output(team_member *t, float *logits, seconds_of *seconds)
{
    const double began = now();
    const packed_matrix *output = &t->w->output;
    const int64_t dim = t->w->dim;
    float *pairs = t->shared->pairs;
    range rows = share_of(t, output, 1);
    for (int start = 0; start < t->n_x;) {
        const int n = tile_size(2 * (t->n_x - start), t->level) / 2;
        for (int m = 0; m < n; m++) {
            float *normed = t->own.normed + 2 * m * dim;
            NORM_ROW[t->level](t->shared->x + (start + m) * dim, t->w->norm, dim, t->w->norm_eps,
                               normed);
            take_remainder(normed, dim, output->group, normed + dim, t->level);
        }
        uint8_t *rounded = t->own.rounded[output->group == 32];
        round_tile(t->own.normed, 0, dim, output->group, 2 * n, rounded, t->level);
        multiply_panels(output, rounded, 2 * n, pairs, AS_FLOATS, rows.start / PANEL,
                        (rows.end + PANEL - 1) / PANEL, t->level);
        for (int m = 0; m < n; m++) {
            float *to = logits + (start + m) * output->n_rows;
            const float *first = pairs + 2 * m * output->n_rows;
            memcpy(to + rows.start, first + rows.start,
                   sizeof(float) * (size_t)(rows.end - rows.start));
            ADD[t->level](to, first + output->n_rows, rows);
        }
        start += n;
    }
#pragma omp barrier
    if (t->thread == 0 && seconds)
        seconds->output += now() - began;
}

/* ---- memory -------------------------------------------------------------------------------- */

/* Takes `n` bytes of `*next`, filled up to a cache line; from NULL on it only counts. */
static void *take(char **next, int64_t n)
{
    void *taken = *next;
    *next += (n + 63) / 64 * 64;
    return taken;
}

static float *take_floats(char **next, int64_t n)
{
    return take(next, n * (int64_t)sizeof(float));
}

/* Columns of the widest activations that are rounded. */
static int64_t widest(const model_weights *w)
{
    return largest(w->dim, largest(w->hidden_dim, w->layers ? w->layers->wo.n_columns : 0));
}

static void take_rounded(const model_weights *w, int n_rows, char **next, uint8_t **rounded)
{
    rounded[0] = take(next, n_rows * rounded_bytes(widest(w), 16));
    rounded[1] = take(next, n_rows * rounded_bytes(widest(w), 32));
}

/* Rows of the largest tile that run_output makes of `n_x` tokens. */
static int rows_of_pairs(int n_x, int level)
{
    return 2 * n_x < largest_tile(level) ? 2 * n_x : largest_tile(level);
}

static void lay_out_shared(const model_weights *w, const kv_cache *cache, int n_x, int level,
                           char **next, shared_buffers *b)
{
    int64_t heads = cache->n_heads * cache->head_dim, kv_heads = cache->n_kv_heads * cache->head_dim;
    b->q = take_floats(next, n_x * heads);
    b->k = take_floats(next, n_x * kv_heads);
    b->v = take_floats(next, n_x * kv_heads);
    b->attention = take_floats(next, n_x * heads);
    b->gate = take_floats(next, n_x * w->hidden_dim);
    b->up = take_floats(next, n_x * w->hidden_dim);
    take_rounded(w, n_x > largest_tile(level) ? n_x : 0, next, b->rounded);
    b->partials = take(next, attention_shared_bytes(cache, n_x));
    b->pairs = take_floats(next, rows_of_pairs(n_x, level) * w->output.n_rows);
}

static void lay_out_own(const model_weights *w, const kv_cache *cache, int n_x, int level,
                        char **next, own_buffers *b)
{
    const int tile = largest_tile(level);
    b->normed = take_floats(next, tile * w->dim);
    take_rounded(w, rows_of_pairs(n_x, level), next, b->rounded);
    b->attention = take(next, attention_own_bytes(cache, n_x));
}

/* Bytes that `forward` needs beside its arguments. */
int64_t forward_scratch_bytes(const model_weights *w, const kv_cache *cache, int n_x, int level)
{
    char *start = NULL, *next = start, *own_start;
    shared_buffers shared;
    own_buffers own;
    lay_out_shared(w, cache, n_x, level, &next, &shared);
    own_start = next;
    lay_out_own(w, cache, n_x, level, &next, &own);
    return own_start - start + (next - own_start) * omp_get_max_threads();
}

/* ---- what Python calls --------------------------------------------------------------------- */

/* Takes tokens through the layers `first` to `end`: x (n_x, dim) holds what goes into the first,
 * their embeddings, and then what comes out of the last.
 *
 * Keys and values are written behind `length` rows of the cache. If there are `logits`
 * (n_logits, vocab_size), those of the last n_logits tokens are computed from what comes out; x is
 * of no use then. `scratch` holds forward_scratch_bytes() bytes; `seconds` may be NULL, and is
 * added to.
 */
void forward(const model_weights *w, const kv_cache *cache, float *x, int n_x, int64_t first,
             int64_t end, float *logits, int n_logits, char *scratch, seconds_of *seconds,
             int level)
{
    shared_buffers shared = {.x = x}, last;
    char *own_start = scratch;
    lay_out_shared(w, cache, n_x, level, &own_start, &shared);
    last = shared;
    last.x = x + (n_x - n_logits) * w->dim;
#pragma omp parallel
    {
        team_member t = {.w = w, .cache = cache, .shared = &shared, .n_x = n_x, .level = level,
                         .thread = omp_get_thread_num(), .n_threads = omp_get_num_threads()};
        char *next = own_start;
        for (int thread = 0; thread <= t.thread; thread++)
            lay_out_own(w, cache, n_x, level, &next, &t.own);
        for (int64_t l = first; l < end; l++)
            run_layer(&t, l, seconds);
        t.shared = &last;
        t.n_x = n_logits;
        if (logits)
            run_output(&t, logits, seconds);
    }
}
