/* The cache of keys and values, and attention to it. */

#ifndef ATTENTION_H
#define ATTENTION_H

#include "packed.h"

enum { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2 };

/* More tokens than these are read in another way; MAX_ROWS of native.py. */
enum { FEW_TOKENS = 8 };

/* The cache, and the rotary tables at the `n_x` tokens to be read. */
typedef struct {
    int32_t kind;
    int64_t n_heads, n_kv_heads, head_dim;
    void *const *keys; /* for each layer (n_kv_heads, capacity, head_dim) */
    void *const *values;
    float *const *key_scales; /* INT8 only: for each layer (n_kv_heads, capacity) */
    float *const *value_scales;
    int64_t capacity, length; /* rows there are, and rows in use before these tokens */
    const float *cos, *sin;   /* (n_x, head_dim / 2) */
} kv_cache;

typedef struct {
    int64_t start, end;
} range;

/* kv_rows.c */

/* Rows of a product with keys or values that one thread must have together: those of whole heads
 * if each head of a token has a scale. */
int64_t rows_together(const kv_cache *cache);

/* Turn the columns `rows` of the queries q (n_x, n_heads * head_dim) by the angles of their
 * tokens, and scale them by 1 / sqrt(head_dim). */
void rotate_queries(const kv_cache *cache, float *q, int n_x, range rows, int level);

/* Write the columns `rows` of k and v (n_x, n_kv_heads * head_dim) into the cache, keys turned. */
void store_keys(const kv_cache *cache, int64_t layer, float *k, int n_x, range rows, int level);
void store_values(const kv_cache *cache, int64_t layer, const float *v, int n_x, range rows,
                  int level);

/* attention.c */

/* Bytes of what all threads share, and of what each has for itself. */
int64_t attention_shared_bytes(const kv_cache *cache, int n_x);
int64_t attention_own_bytes(const kv_cache *cache, int n_x);

/* Attend with turned queries q to all that is in the cache and to the new tokens before each; out
 * (n_x, n_heads * head_dim). To be called by all threads of a team, which meet inside. */
void attend(const kv_cache *cache, int64_t layer, const float *q, int n_x, float *out, void *shared,
            void *own, int level);

/* attention_many.c: the same for more tokens than a few. */
int64_t many_bytes(const kv_cache *cache);
void attend_many(const kv_cache *cache, int64_t layer, const float *q, int n_x, float *out, void *own,
                 int level);

#endif
