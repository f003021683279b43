/* A thread's part of a forward pass: its state, and the products of matrices with the tokens. */

#ifndef WORKER_H
#define WORKER_H

#include <time.h>

#include "cpu.h"
#include "forward.h"

/* Bytes of weights that a thread takes at a time: enough for prefetching, and few enough that no
 * thread waits long for another at the end of a phase. */
enum { MIN_PART_BYTES = 1 << 16, MAX_PART_BYTES = 1 << 20 };

/* State of one thread in a pass. */
typedef struct {
    const kernel_set *kernels;
    const model_weights *w;
    const token_batch *batch;
    const shared_buffers *shared;
    const thread_buffers *local;
    int n_x; /* tokens of the batch */
    team_phase phase;
    input_rows input; /* of the next products */
} worker;

/* Rows that need not be exact. */
INLINE int n_inexact(const worker *t) { return t->n_x - t->batch->n_exact; }

INLINE double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Rows of a matrix that one thread computes together: a multiple of `unit`, and whole panels; for
 * many tokens two, which are multiplied at once. */
INLINE int64_t step_rows(const worker *t, int64_t unit)
{
    const int64_t least = t->n_x > max_tile(t->kernels) ? 2 * PANEL : PANEL;
    int64_t step = least;
    while (step % unit)
        step += least;
    return step;
}

INLINE int64_t n_steps(const matrix *w, int64_t step) { return round_up(w->n_rows, step) / step; }

/* Take a part of the phase's `n` steps, each `step` rows of matrices like `w`; 0 if none is left. */
INLINE int take_steps(const worker *t, int64_t n, const matrix *w, int64_t step, range *part)
{
    const int64_t bytes = step * weight_row_bytes(w);
    const int is_bf16 = n_inexact(t) && inexact_form(t->kernels, w) == AS_BF16;
    const int64_t at_once = is_bf16 ? t->kernels->bf16_rows / step : 0;
    const int64_t least = max(1 + MIN_PART_BYTES / bytes, at_once);
    return take_part(&t->phase, n, least, max(least, 1 + MAX_PART_BYTES / bytes), part);
}

/* Rows of `w` in a part of the steps of several matrices, of which `w` is the first; removes its
 * steps from the part. */
INLINE range take_rows(range *part, const matrix *w, int64_t step)
{
    const int64_t n = n_steps(w, step);
    const range rows = {min(min(part->start, n) * step, w->n_rows),
                        min(min(part->end, n) * step, w->n_rows)};
    *part = (range){max(part->start - n, 0), max(part->end - n, 0)};
    return rows;
}

INLINE range panels_of(range rows)
{
    return (range){rows.start / PANEL, (rows.end + PANEL - 1) / PANEL};
}

/* ---- worker_products.c ----------------------------------------------------------------------- */

/* Convert x (n_x, n), normalized if `norm` is given, to the forms that the `matrices` take. */
void prepare_input(worker *t, const float *x, int64_t n, const float *norm,
                   const matrix *const *matrices, int n_matrices);

/* Multiply some rows of a matrix of floats with exact rows x (n, columns of w), into y (n, rows of
 * w): as many at a time as are summed in the order of one. */
void multiply_exactly(const worker *t, const matrix *w, range rows, const float *x, int n,
                      float *y, int store_mode);

/* Multiply some rows of a matrix with its forms of the input, into y (n_x, rows of w). */
void multiply_rows(const worker *t, const matrix *w, range rows, float *y, int store_mode);

/* Compute some columns of the gated input of w2, silu(w1 * x) * (w3 * x), into the shared gate. */
void multiply_gated(const worker *t, const layer_weights *layer, range rows);

/* Convert the shared gate to the form that w2 takes, unless that is what was stored there. */
void prepare_gated(worker *t, const layer_weights *layer);

/* Add a matrix times the input to the residual stream. */
void add_product(worker *t, const matrix *w);

/* ---- logits.c -------------------------------------------------------------------------------- */

/* Compute the logits (n_logits, vocab_size) of the batch. */
void run_output(worker *t, float *logits, pass_record *record);

#endif
