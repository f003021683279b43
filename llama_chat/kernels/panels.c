/* Packing of matrices into panels, and dequantization of their rows. */

#include "panels.h"

#include "cpu.h"

/* Copy `size` bytes of each row of a panel side by side; the padding of the last one is zeros. */
INLINE uint8_t *gather(const matrix *w, const tensor_view *from, int64_t panel, int64_t g,
                       int64_t offset, size_t size, uint8_t *to)
{
    const uint8_t *at =
        from->data + panel * PANEL * from->row_stride + g * from->group_stride + offset;
    const int64_t stride = from->row_stride, left = w->n_rows - panel * PANEL;
    if (left >= PANEL)
        for (size_t r = 0; r < PANEL; r++, at += stride)
            memcpy(to + r * size, at, size);
    else {
        memset(to, 0, PANEL * size);
        for (size_t r = 0; r < (size_t)left; r++, at += stride)
            memcpy(to + r * size, at, size);
    }
    return to + PANEL * size;
}

INLINE uint8_t *gather_scales(const matrix *w, const tensor_view *scales,
                              const tensor_view *mins, int64_t panel, int64_t g, size_t size,
                              uint8_t *to)
{
    to = gather(w, scales, panel, g, 0, size, to);
    return w->layout.has_mins ? gather(w, mins, panel, g, 0, size, to) : to;
}

/* ---- called from Python --------------------------------------------------------------------- */

/* Write the panels of `w`, whose other fields are set, from the tensors `from`. */
EXPORT void pack_panels(const matrix *w, const unpacked_matrix *from, uint8_t *to)
{
    const packed_layout layout = w->layout;
    for (int64_t p = 0; p < n_panels(w); p++)
        for (int64_t g = 0; g < n_groups(w); g++) {
            if (begins_super_block(layout, g))
                to = gather_scales(w, &from->super_scales, &from->super_mins, p,
                                   g / layout.groups_per_super_block, 2, to);
            for (int64_t at = 0; at < quant_bytes(layout); at += CHUNK) {
                uint8_t *chunk = to;
                to = gather(w, &from->quants, p, g, at / PANEL, 4, to);
                if (layout.bits == 8)
                    for (int i = 0; i < CHUNK; i++)
                        chunk[i] ^= 0x80;
            }
            if (layout.groups_per_super_block)
                to = gather_scales(w, &from->scales, &from->mins, p, g, 1, to);
            else
                to = gather_scales(w, &from->scales, &from->mins, p, g, 2, to);
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
