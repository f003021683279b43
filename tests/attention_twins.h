/* Comparison of the cache and attention of two levels, and of sequences together and alone. */

#ifndef ATTENTION_TWINS_H
#define ATTENTION_TWINS_H

#include "kernel_twins.h"

enum { CAPACITY = 180, N_NEW = 24, MAX_WIDTH = 128, SECOND_START = 71 };

/* Rows of one layer, which are random before the new ones. */
typedef struct {
    float keys[CAPACITY * MAX_WIDTH], values[CAPACITY * MAX_WIDTH];
    float key_scales[CAPACITY * 8], value_scales[CAPACITY * 8];
    void *key_rows[1], *value_rows[1];
    float *key_scale_rows[1], *value_scale_rows[1];
} layer_rows;

/* A cache of one layer; of two segments, if it is long enough. */
typedef struct {
    kv_cache cache;
    cache_segment segments[2];
    layer_rows rows[2];
    float cos[N_NEW * MAX_WIDTH / 2], sin[N_NEW * MAX_WIDTH / 2];
} small_cache;

static void fill_rows(void *rows, int64_t n, float *scales, int kind)
{
    for (int64_t i = 0; i < n; i++) {
        const float x = random_float() * 2;
        if (kind == FLOAT32)
            ((float *)rows)[i] = x;
        else if (kind == INT8)
            ((int8_t *)rows)[i] = (int8_t)(x * 63);
        else
            ((uint16_t *)rows)[i] = kind == BFLOAT16 ? to_bf16(x) : to_half(x);
    }
    for (int i = 0; i < CAPACITY * 8; i++)
        scales[i] = 0.01f + fabsf(random_float()) * 0.02f;
}

/* Fill `n` numbers of keys and of values, and return them as the segment from row `start` on. */
static cache_segment random_segment(layer_rows *r, int64_t n, int kind, int64_t start)
{
    fill_rows(r->keys, n, r->key_scales, kind);
    fill_rows(r->values, n, r->value_scales, kind);
    r->key_rows[0] = r->keys, r->value_rows[0] = r->values;
    r->key_scale_rows[0] = r->key_scales, r->value_scale_rows[0] = r->value_scales;
    return (cache_segment){r->key_rows,         r->value_rows, r->key_scale_rows,
                           r->value_scale_rows, CAPACITY,      start};
}

static small_cache *new_cache(int kind, int n_heads, int n_kv_heads, int head_dim, int length,
                              int n_new)
{
    static small_cache c;
    const int64_t n = CAPACITY * n_kv_heads * head_dim;
    const int n_segments = length > SECOND_START ? 2 : 1;
    for (int i = 0; i < n_segments; i++)
        c.segments[i] = random_segment(c.rows + i, n, kind, i * SECOND_START);
    fill(c.cos, N_NEW * head_dim / 2);
    fill(c.sin, N_NEW * head_dim / 2);
    c.cache = (kv_cache){kind, n_new, n_heads, n_kv_heads, head_dim, c.segments, n_segments,
                         length, c.cos, c.sin};
    return &c;
}

static void run_attention(const kernel_set *kernels, const kv_cache *sequences, int n,
                          const float *q, float *out)
{
    static char memory[1 << 22];
    arena space = {memory, 0};
    attention_buffers buffers = {0};
    allocate_shared_attention(sequences, n, &space, &buffers);
    allocate_thread_attention(sequences, n, &space, &buffers);
    work_share share = {0};
    attend(kernels, sequences, n, 0, q, out, &buffers, &(team_phase){{0, 1}, &share, 1});
}

/* Compare sequences that begin with the same segment, together and each alone: bit for bit. */
static void compare_family(int kind, int n_heads, int n_kv_heads, int head_dim)
{
    enum { N = 5 };
    static const int lengths[N] = {130, 140, 66, 179, 130}, news[N] = {1, 8, 2, 1, N_NEW};
    static layer_rows rows[N];
    static float q[2 * N_NEW * 2 * MAX_WIDTH], together[sizeof q / 4], alone[sizeof q / 4];
    const int64_t width = n_heads * head_dim;
    const small_cache *first = new_cache(kind, n_heads, n_kv_heads, head_dim, 130, 1);
    cache_segment segments[N][2];
    kv_cache sequences[N];
    int64_t row = 0;
    for (int i = 0; i < N; i++) {
        segments[i][0] = first->segments[0];
        segments[i][1] = random_segment(rows + i, CAPACITY * n_kv_heads * head_dim, kind,
                                        i == 2 ? 65 : SECOND_START);
        sequences[i] = first->cache;
        sequences[i].segments = segments[i];
        sequences[i].length = lengths[i], sequences[i].n_new = news[i];
    }
    fill(q, 2 * N_NEW * width);
    run_attention(&tested, sequences, N, q, together);
    for (int i = 0; i < N; row += news[i++]) {
        run_attention(&tested, sequences + i, 1, q + row * width, alone);
        report("attention in a family",
               memcmp(alone, together + row * width, sizeof *q * (size_t)(news[i] * width)) == 0);
    }
}

static void compare_stored(const small_cache *c, const float *x, int kind)
{
    static float got[CAPACITY * MAX_WIDTH], expected[CAPACITY * MAX_WIDTH];
    static float got_scales[CAPACITY * 8], scales[CAPACITY * 8];
    const range columns = {0, c->cache.n_kv_heads * c->cache.head_dim};
    tested.store_rows(&c->cache, &(void *){got}, &(float *){got_scales}, 0, x, columns);
    portable.store_rows(&c->cache, &(void *){expected}, &(float *){scales}, 0, x, columns);
    compare("scales of store_rows", got_scales, scales, CAPACITY * 8, 0);
    for (size_t i = 0; i < sizeof got && kind == INT8; i++)
        report("store_rows of int8", abs(((int8_t *)got)[i] - ((int8_t *)expected)[i]) <= 1);
    report("store_rows", kind == INT8 || memcmp(got, expected, sizeof got) == 0);
}

static void compare_cache(int kind, int n_heads, int n_kv_heads, int head_dim)
{
    static float q[N_NEW * 2 * MAX_WIDTH], got[N_NEW * 2 * MAX_WIDTH], expected[sizeof got / 4];
    static const int lengths[] = {0, 130}, news[] = {1, 3, 8, 9, N_NEW};
    const int64_t width = n_heads * head_dim;
    for (int i = 0; i < 10; i++) {
        const int n_x = news[i % 5];
        const small_cache *c =
            new_cache(kind, n_heads, n_kv_heads, head_dim, lengths[i / 5], n_x);
        const int is_rounded = kind == BFLOAT16 && tested.takes_bf16;
        fill(q, n_x * width);
        run_attention(&tested, &c->cache, 1, q, got);
        run_attention(&portable, &c->cache, 1, q, expected);
        compare("attention", got, expected, n_x * width, is_rounded && n_x > 8 ? 0.02f : 1e-5f);
        memcpy(got, q, sizeof q), memcpy(expected, q, sizeof q);
        tested.rotate(&c->cache, got, width, (range){2, width}, 0.3f);
        portable.rotate(&c->cache, expected, width, (range){2, width}, 0.3f);
        compare("rotate", got, expected, n_x * width, 1e-6f);
        q[0] = 1e6f, q[1] = -65519, q[2] = 65520, q[3] = 3e-8f, q[4] = -6e-6f;
        q[5] = kind == INT8 ? 1 : NAN, q[6] = kind == INT8 ? 1 : -INFINITY;
        compare_stored(c, q, kind);
    }
}

#endif
