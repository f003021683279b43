/* Products of matrices with the tokens of a pass. */

#include "worker.h"

/* Rows that are quantized for a packed matrix: all, or the exact ones. */
INLINE int n_quantized(const worker *t, const matrix *w)
{
    return inexact_form(t->kernels, w) == AS_BF16 ? t->batch->n_exact : t->n_x;
}

/* Convert `size` rows of x from row `m` on, (size, n), to one form. */
static void convert_rows(const worker *t, int form, const float *x, int64_t n, int m, int size)
{
    char *to = (char *)t->input.forms[form] + m * row_bytes(form, n);
    if (form == AS_FLOATS)
        memcpy(to, x, (size_t)(size * row_bytes(form, n)));
    else if (form != AS_BF16)
        quantize_tile(t->kernels, x, 0, n, form == GROUPS_OF_32 ? 32 : 16, size, (uint8_t *)to);
    else
        for (int i = 0; i < size; i++, x += n)
            if (m + i >= t->batch->n_exact)
                t->kernels->round_row(x, n, m + i - t->batch->n_exact, t->input.forms[form]);
}

void prepare_input(worker *t, const float *x, int64_t n, const float *norm,
                   const matrix *const *matrices, int n_matrices)
{
    const kernel_set *kernels = t->kernels;
    const int tile = max_tile(kernels), is_shared = t->n_x > tile;
    int is_used[N_FORMS] = {0}, quantized = 0;
    for (int i = 0; i < n_matrices; i++) {
        is_used[exact_form(matrices[i])] |= t->batch->n_exact > 0;
        is_used[inexact_form(kernels, matrices[i])] |= n_inexact(t) > 0;
        if (matrices[i]->type == PACKED) /* the same for all of them */
            quantized = n_quantized(t, matrices[i]);
    }
    t->input = is_shared ? t->shared->input : t->local->input;
    if (!norm && is_used[AS_FLOATS]) { /* they are floats already */
        t->input.forms[AS_FLOATS] = (void *)x;
        is_used[AS_FLOATS] = 0;
    }
    const team_member me = is_shared ? t->phase.me : (team_member){0, 1};
    for (int start = me.index * tile; start < t->n_x; start += me.n_threads * tile)
        for (int m = start; m < t->n_x && m < start + tile;) {
            const int n_left = (m < quantized ? quantized : t->n_x) - m;
            const int size = (int)min(next_tile_size(kernels, n_left), start + tile - m);
            const float *rows = x + m * n;
            if (norm) {
                for (int i = 0; i < size; i++)
                    kernels->rms_norm(rows + i * n, norm, n, t->w->norm_eps,
                                      t->local->normed + i * n);
                rows = t->local->normed;
            }
            for (int form = 0; form < N_FORMS; form++)
                if (is_used[form] && (form >= AS_FLOATS || m < quantized))
                    convert_rows(t, form, rows, n, m, size);
            m += size;
        }
    if (is_shared)
        wait_for_team();
}

void multiply_exactly(const worker *t, const matrix *w, range rows, const float *x, int n,
                      float *y, int store_mode)
{
    for (int m = 0; m < n; m += MAX_EXACT_BATCH)
        t->kernels->multiply_floats(w, rows, x + m * w->n_columns,
                                    (int)min(MAX_EXACT_BATCH, n - m), y + m * w->n_rows,
                                    store_mode);
}

void multiply_rows(const worker *t, const matrix *w, range rows, float *y, int store_mode)
{
    const int n_left = n_inexact(t), n_exact = t->batch->n_exact;
    const int form = inexact_form(t->kernels, w);
    const void *exact = t->input.forms[exact_form(w)];
    if (rows.start >= rows.end)
        return;
    if (w->type != PACKED)
        multiply_exactly(t, w, rows, exact, n_exact, y, store_mode);
    else if (n_quantized(t, w))
        multiply_panels(t->kernels, w, exact, n_quantized(t, w), y, store_mode, panels_of(rows));
    y += n_exact * w->n_rows;
    if (n_left && form == AS_BF16)
        t->kernels->multiply_bf16(w, rows, t->input.forms[AS_BF16], n_left, y, store_mode,
                                  t->local->products);
    else if (n_left && form == AS_FLOATS)
        t->kernels->multiply_floats(w, rows, (const float *)exact + n_exact * w->n_columns, n_left,
                                    y, store_mode);
}

/* Columns of gated products of quantized rows that are computed together; 0 if they are not. */
static int gated_columns(const worker *t, const layer_weights *layer)
{
    const matrix *w1 = &layer->w1, *w3 = &layer->w3;
    if (n_inexact(t) && inexact_form(t->kernels, w1) == AS_BF16)
        return 0;
    return gated_width(t->kernels, w1, w3, t->n_x);
}

/* Group in which gated products, of which `width` columns are computed together, are quantized for w2
 * while they are in L2; 0 if they are not. */
static int quantized_group(int width, const matrix *w2)
{
    return width && w2->type == PACKED && width % w2->layout.group == 0 ? w2->layout.group : 0;
}

/* True if gated products are rounded to bfloat16, as w2 takes them: they all are inexact. */
static int is_gated_in_bf16(const worker *t, const layer_weights *layer)
{
    const matrix *matrices[] = {&layer->w1, &layer->w2, &layer->w3};
    for (int i = 0; i < 3; i++)
        if (inexact_form(t->kernels, matrices[i]) != AS_BF16)
            return 0;
    return t->kernels->multiply_gated_bf16 && layer->w1.type == layer->w3.type &&
           n_inexact(t) == t->n_x;
}

void multiply_gated(const worker *t, const layer_weights *layer, range rows)
{
    const shared_buffers *b = t->shared;
    const matrix *w1 = &layer->w1, *w3 = &layer->w3;
    if (rows.start >= rows.end)
        return;
    if (is_gated_in_bf16(t, layer)) {
        t->kernels->multiply_gated_bf16(w1, w3, rows, t->input.forms[AS_BF16], t->n_x,
                                        (uint16_t *)b->gate, t->local->products);
        return;
    }
    const int width = gated_columns(t, layer);
    if (width) {
        multiply_gated_panels(t->kernels, w1, t->input.forms[exact_form(w1)], w3,
                              t->input.forms[exact_form(w3)], t->n_x, b->gate,
                              quantized_group(width, &layer->w2), panels_of(rows));
        return;
    }
    multiply_rows(t, w3, rows, b->up, STORE_FLOAT);
    multiply_rows(t, w1, rows, b->gate, STORE_FLOAT);
    for (int m = 0; m < t->n_x; m++) {
        const int64_t at = m * w1->n_rows + rows.start;
        t->kernels->swiglu(b->gate + at, b->up + at, rows.end - rows.start);
    }
}

void prepare_gated(worker *t, const layer_weights *layer)
{
    const matrix *w2 = &layer->w2;
    if (is_gated_in_bf16(t, layer))
        t->input.forms[AS_BF16] = t->shared->gate;
    else if (quantized_group(gated_columns(t, layer), w2))
        t->input.forms[exact_form(w2)] = t->shared->gate;
    else
        prepare_input(t, t->shared->gate, w2->n_columns, NULL, &w2, 1);
}

void add_product(worker *t, const matrix *w)
{
    const int64_t step = step_rows(t, 1), n = n_steps(w, step);
    for (range part; take_steps(t, n, w, step, &part);)
        multiply_rows(t, w, take_rows(&part, w, step), t->shared->x, ACCUMULATE);
    end_phase(&t->phase);
}
