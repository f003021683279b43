/* A model with packed weights, and the working memory of a forward pass. */

#ifndef FORWARD_H
#define FORWARD_H

#include "matrix_product.h"

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

/* Seconds of each part of forward passes, and the number of threads of the latest one. */
typedef struct {
    double projections, attention, feed_forward, output;
    int32_t n_threads;
} pass_record;

/* Quantized rows, in groups of 16 and of 32: a layer may have matrices of both. */
typedef struct {
    uint8_t *by_group[2];
} quantized_rows;

INLINE uint8_t *rows_for(const quantized_rows *rows, const packed_matrix *w)
{
    return rows->by_group[w->layout.group == 32];
}

/* Buffers shared by all threads. */
typedef struct {
    float *x;                     /* (n_x, dim), the residual stream */
    float *q, *k, *v, *attention; /* (n_x, heads * head_dim) */
    float *gate, *up;             /* (n_x, hidden_dim) */
    quantized_rows quantized;     /* if there are more tokens than a tile holds */
    float *products;              /* (tile, vocab_size), see run_output() */
} shared_buffers;

/* Buffers of each thread. */
typedef struct {
    float *normed;            /* (tile, dim) */
    quantized_rows quantized; /* one tile at most */
    attention_buffers attention;
} thread_buffers;

/* Rows of the largest tile that run_output() makes of `n_x` tokens. */
int output_tile(const kernel_set *kernels, int n_x);

void allocate_shared(const kernel_set *kernels, const model_weights *w, const kv_cache *cache,
                     int n_x, arena *memory, shared_buffers *shared, attention_buffers *attention);
void allocate_thread(const kernel_set *kernels, const model_weights *w, const kv_cache *cache,
                     int n_x, arena *memory, thread_buffers *local);

#endif
