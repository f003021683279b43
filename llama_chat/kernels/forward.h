/* A model, and the working memory of a forward pass. */

#ifndef FORWARD_H
#define FORWARD_H

#include "matrix_product.h"

typedef struct {
    const float *attention_norm, *ffn_norm;
    matrix wq, wk, wv, wo, w1, w2, w3;
} layer_weights;

typedef struct {
    int64_t dim, n_layers, hidden_dim;
    float norm_eps;
    const layer_weights *layers;
    const float *norm;
    matrix output;
} model_weights;

/* Seconds of each part of forward passes, and the number of threads of the latest one. */
typedef struct {
    double projections, attention, feed_forward, output;
    int32_t n_threads;
} pass_record;

/* Rows of activations in the forms that matrices take: quantized in groups of 16 or of 32, as
 * floats, or rounded to bfloat16. A layer may have matrices of several. */
enum { GROUPS_OF_16, GROUPS_OF_32, AS_FLOATS, AS_BF16, N_FORMS };

typedef struct {
    void *forms[N_FORMS];
} input_rows;

/* Bytes of one row in a form. */
INLINE int64_t row_bytes(int form, int64_t n_columns)
{
    switch (form) {
    case AS_FLOATS: return n_columns * (int64_t)sizeof(float);
    case AS_BF16: return n_columns * (int64_t)sizeof(uint16_t);
    default: return quantized_row_bytes(n_columns, form == GROUPS_OF_32 ? 32 : 16);
    }
}

/* Form of `n_x` rows for the products of a matrix. */
INLINE int form_for(const kernel_set *kernels, const matrix *w, int n_x)
{
    if (w->type == PACKED)
        return w->layout.group == 32 ? GROUPS_OF_32 : GROUPS_OF_16;
    const int rounds = w->type == WEIGHT_BF16 && kernels->multiply_bf16 && n_x > MAX_EXACT_BATCH;
    return rounds ? AS_BF16 : AS_FLOATS;
}

/* Buffers shared by all threads. */
typedef struct {
    float *x;                     /* (n_x, dim), the residual stream */
    float *q, *k, *v, *attention; /* (n_x, heads * head_dim) */
    float *gate, *up;             /* (n_x, hidden_dim) */
    input_rows input;             /* if there are more tokens than a tile holds */
    float *products;              /* (tile, vocab_size), see run_output() */
    work_share *shares;           /* one for each thread */
} shared_buffers;

/* Buffers of each thread. */
typedef struct {
    float *normed;    /* (tile, dim) */
    input_rows input; /* one tile at most */
    attention_buffers attention;
} thread_buffers;

/* Rows of the largest tile that run_output() makes of `n_x` tokens. */
int output_tile(const kernel_set *kernels, int n_x);

void allocate_shared(const kernel_set *kernels, const model_weights *w, const kv_cache *cache,
                     int n_x, int n_threads, arena *memory, shared_buffers *shared,
                     attention_buffers *attention);
void allocate_thread(const kernel_set *kernels, const model_weights *w, const kv_cache *cache,
                     int n_x, arena *memory, thread_buffers *local);

#endif
