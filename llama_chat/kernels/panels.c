/* Packing of matrices into panels, and dequantization of their rows. */

#include "panels.h"

#include "cpu.h"
#include "panel_span.h"

/* Copy `size` bytes of each row of a panel side by side; the padding of the last one is zeros. */
INLINE void gather(const matrix *w, const tensor_view *from, int64_t panel, int64_t g,
                   int64_t offset, size_t size, void *to)
{
    const size_t n_rows = (size_t)rows_of_panel(w, panel);
    const uint8_t *at =
        from->data + panel * PANEL * from->row_stride + g * from->group_stride + offset;
    for (size_t r = 0; r < n_rows; r++, at += from->row_stride)
        memcpy((uint8_t *)to + r * size, at, size);
    memset((uint8_t *)to + n_rows * size, 0, (PANEL - n_rows) * size);
}

/* Gather the scales, and minima, of a group or of a super-block. */
INLINE void gather_scales(const matrix *w, const tensor_view *from_scales,
                          const tensor_view *from_mins, int64_t panel, int64_t g, size_t size,
                          void *scales, void *mins)
{
    gather(w, from_scales, panel, g, 0, size, scales);
    if (w->layout.has_mins)
        gather(w, from_mins, panel, g, 0, size, mins);
}

static void gather_span(const matrix *w, const unpacked_matrix *from, int64_t panel, int64_t i,
                        panel_span *to)
{
    const int n = groups_per_span(w->layout), n_chunks = chunks_per_group(w->layout);
    for (int g = 0; g < n; g++)
        for (int c = 0; c < n_chunks; c++)
            gather(w, &from->quants, panel, i * n + g, 4 * c, 4, &to->quants[g * n_chunks + c]);
    if (!w->layout.groups_per_super_block) {
        gather_scales(w, &from->scales, &from->mins, panel, i, 2, to->scales, to->mins);
        return;
    }
    gather_scales(w, &from->super_scales, &from->super_mins, panel, i, 2, to->scales, to->mins);
    for (int g = 0; g < n; g++)
        gather_scales(w, &from->scales, &from->mins, panel, i * n + g, 1, to->group_scales[g],
                      to->group_mins[g]);
}

/* ---- called from Python --------------------------------------------------------------------- */

/* Bytes of all panels of `w`, of which `data` need not be set. */
EXPORT int64_t packed_bytes(const matrix *w) { return n_panels(w) * panel_bytes(w); }

/* Write the panels of `w`, whose other fields are set, from the tensors `from`. */
EXPORT void pack_panels(const matrix *w, const unpacked_matrix *from, uint8_t *to)
{
    panel_span span;
    for (int64_t p = 0; p < n_panels(w); p++)
        for (int64_t i = 0; i < n_groups(w) / groups_per_span(w->layout); i++) {
            gather_span(w, from, p, i, &span);
            to = append_span(to, w->layout, &span);
        }
}

typedef struct {
    const kernel_set *kernels;
    const matrix *w;
    const int64_t *ids;
    int64_t n;
    char *to;
    int is_bf16;
} row_job;

static void dequantize_share(team_member me, void *argument)
{
    const row_job *job = argument;
    const int64_t row_bytes = job->w->n_columns * (job->is_bf16 ? 2 : 4);
    const range share = share_of(job->n, me);
    for (int64_t i = share.start; i < share.end; i++)
        job->kernels->dequantize_row(job->w, job->ids[i], job->to + i * row_bytes, job->is_bf16);
}

/* Dequantize the `n` rows `ids`, to (n, n_columns) in bfloat16 or float32. Uses `n_threads`
 * threads, or one if there is too little work for more. */
EXPORT void dequantize_rows(const matrix *w, const int64_t *ids, int64_t n, void *to,
                            int is_bf16, int level, int n_threads)
{
    const kernel_set kernels = kernels_of(level);
    row_job job = {&kernels, w, ids, n, to, is_bf16};
    run_team(n * w->n_columns > 65536 ? n_threads : 1, dequantize_share, &job);
}
