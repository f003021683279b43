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

/* Rows of activations in the forms that matrices need: quantized in groups of 16 or of 32, as
 * floats, or rounded to bfloat16. The matrices of a layer may need several of them. Those in
 * bfloat16 begin with the first row that is not exact. */
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

/* Form of exact rows for the products of a matrix. */
INLINE int exact_form(const matrix *w)
{
    if (w->type == PACKED)
        return w->layout.group == 32 ? GROUPS_OF_32 : GROUPS_OF_16;
    return AS_FLOATS;
}

/* Form of rows that need not be exact. */
INLINE int inexact_form(const kernel_set *kernels, const matrix *w)
{
    return kernels->takes_bf16 && kernels->takes_bf16(w) ? AS_BF16 : exact_form(w);
}

/* The new tokens of a pass: those of one sequence after the other, the exact ones first. */
typedef struct {
    const kv_cache *sequences;
    int n_sequences, n_x, n_exact; /* tokens */
    const int32_t *logit_rows;     /* those whose logits are computed */
    int n_logits;
} token_batch;

/* Buffers shared by all threads. */
typedef struct {
    float *x;                     /* (n_x, dim), the residual stream */
    float *q, *k, *v, *attention; /* (n_x, heads * head_dim) */
    float *gate, *up;             /* (n_x, hidden_dim); `gate` may hold quantized rows */
    input_rows input;             /* if there are more tokens than a tile holds */
    float *normed;                /* (rows, dim), of logits: see run_output() */
    void *quantized;              /* the same, for a packed output */
    work_share *shares;           /* one for each thread */
} shared_buffers;

/* Buffers of each thread. */
typedef struct {
    float *normed;    /* (tile, dim) */
    input_rows input; /* one tile at most */
    void *products;   /* scratch memory of multiply_bf16() */
    attention_buffers attention;
} thread_buffers;

/* Rows for each token whose logits are computed: a packed output matrix needs a row of errors,
 * too. */
INLINE int rows_per_logits(const model_weights *w) { return w->output.type == PACKED ? 2 : 1; }

void allocate_shared(const kernel_set *kernels, const model_weights *w, const token_batch *batch,
                     int n_threads, arena *memory, shared_buffers *shared,
                     attention_buffers *attention);
void allocate_thread(const kernel_set *kernels, const model_weights *w, const token_batch *batch,
                     arena *memory, thread_buffers *local);

#endif
