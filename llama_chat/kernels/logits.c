/* Logits of the tokens of a pass. */

#include "worker.h"

/* Tokens of the next tile of logits. */
INLINE int next_logits(const worker *t, int n_left)
{
    const int n_rows = rows_per_logits(t->w);
    return n_rows == 1 ? (int)min(n_left, MAX_EXACT_BATCH)
                       : next_tile_size(t->kernels, n_rows * n_left) / n_rows;
}

/* Normalize the tokens whose logits are computed, and quantize them for a packed output.
 *
 * Quantization costs more accuracy here than in any other product, and reading the matrix takes
 * most of the time. So the quantization errors are quantized to 8 bits, too, as further rows. */
static void prepare_logits(worker *t)
{
    const token_batch *batch = t->batch;
    const matrix *output = &t->w->output;
    const int64_t dim = t->w->dim;
    const int n_rows = rows_per_logits(t->w), is_packed = output->type == PACKED;
    for (int start = 0, tile = 0, n; start < batch->n_logits; start += n, tile++) {
        n = next_logits(t, batch->n_logits - start);
        if (tile % t->phase.me.n_threads != t->phase.me.index)
            continue;
        float *first = t->shared->normed + n_rows * start * dim;
        for (int m = 0; m < n; m++) {
            const float *x = t->shared->x + batch->logit_rows[start + m] * dim;
            float *row = first + n_rows * m * dim;
            t->kernels->rms_norm(x, t->w->norm, dim, t->w->norm_eps, row);
            if (is_packed)
                t->kernels->quantization_error(row, dim, output->layout.group, row + dim);
        }
        if (is_packed)
            quantize_tile(t->kernels, first, 0, dim, output->layout.group, 2 * n,
                          (uint8_t *)t->shared->quantized +
                              2 * start * quantized_row_bytes(dim, output->layout.group));
    }
    end_phase(&t->phase);
}

void run_output(worker *t, float *logits, pass_record *record)
{
    const double began = now();
    const matrix *output = &t->w->output;
    const int n_logits = t->batch->n_logits;
    const int64_t step = step_rows(t, 1), n_parts = n_steps(output, step);
    prepare_logits(t);
    for (range part; take_steps(t, n_parts, output, step, &part);) {
        const range rows = take_rows(&part, output, step);
        if (output->type != PACKED)
            multiply_exactly(t, output, rows, t->shared->normed, n_logits, logits, STORE_FLOAT);
        else
            multiply_panels(t->kernels, output, t->shared->quantized, 2 * n_logits, logits,
                            ADD_PAIRS, panels_of(rows));
    }
    end_phase(&t->phase);
    if (t->phase.me.index == 0 && record)
        record->output += now() - began;
}
