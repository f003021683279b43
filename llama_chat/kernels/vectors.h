/* The inner loops of attention, for registers of LANES floats; included once for each width.
 *
 * Compilers take a vector that is wider than a register of the machine apart in memory, hence a
 * function for each width: name_16 for AVX-512, name_8 for AVX2, name_4 for the rest.
 */

#define PASTE(name, lanes) name##_##lanes
#define PASTE_VALUE(name, lanes) PASTE(name, lanes)
#define FN(name) PASTE_VALUE(name, LANES)
#define VECTOR FN(vector)
#define HALVES FN(halves)
#define WHOLE FN(whole)
#define SIGNED_WHOLE FN(signed_whole)

typedef float VECTOR __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t HALVES __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef uint32_t WHOLE __attribute__((vector_size(4 * LANES)));
typedef int32_t SIGNED_WHOLE __attribute__((vector_size(4 * LANES)));

/* Registers for the sums of a tile, about half of those that there are. */
#define N_SUMS (LANES == 16 ? 16 : 8)

/* LANES numbers of a row, from number `at` on; of INT8 without their scale.
 *
 * Loops to whole numbers become one widening instruction; vector types, or loops to floats, many. But
 * the narrowest registers are better served by a vector type.
 */
INLINE VECTOR FN(load)(const char *row, int64_t at, int kind)
{
    row += at * size_of(kind);
    if (kind == FLOAT32)
        return *(const VECTOR *)row;
    uint32_t loaded[LANES];
    WHOLE numbers;
    for (int i = 0; i < LANES; i++)
        loaded[i] = kind == BFLOAT16 ? ((const uint16_t *)row)[i]
                                     : (uint32_t)((const int8_t *)row)[i];
    memcpy(&numbers, loaded, sizeof numbers);
#if LANES == 4
    if (kind == BFLOAT16)
        numbers = __builtin_convertvector(*(const HALVES *)row, WHOLE);
#endif
    return kind == BFLOAT16 ? (VECTOR)(numbers << 16)
                            : __builtin_convertvector((SIGNED_WHOLE)numbers, VECTOR);
}

INLINE float FN(sum_of)(VECTOR v)
{
#if LANES == 4
    return (v[0] + v[2]) + (v[1] + v[3]);
#elif LANES == 8
    vector_4 half[2];
    memcpy(half, &v, sizeof v);
    return sum_of_4(half[0] + half[1]);
#else
    vector_8 half[2];
    memcpy(half, &v, sizeof v);
    return sum_of_8(half[0] + half[1]);
#endif
}

/* scores (n_queries, MAX_RUN) = queries (n_queries, width) * row, for `n` rows.
 *
 * A row is widened once for all queries, which is most of the work. The loops over queries are
 * unrolled by force, or else GCC keeps the sums in memory. */
INLINE void FN(score)(const float *queries, int n_queries, const run *keys, int64_t n, float *scores,
                      int64_t width, int kind)
{
    for (int64_t r = 0; r < n; r++) {
        const char *row = keys->rows + r * keys->row_bytes;
        VECTOR dots[TOGETHER] = {0};
        for (int64_t at = 0; at < width; at += LANES) {
            VECTOR numbers = FN(load)(row, at, kind);
#pragma GCC unroll 8
            for (int i = 0; i < n_queries; i++)
                dots[i] += *(const VECTOR *)(queries + i * width + at) * numbers;
        }
        for (int i = 0; i < n_queries; i++)
            scores[i * MAX_RUN + r] = FN(sum_of)(dots[i]) * (kind == INT8 ? keys->scales[r] : 1);
    }
}

/* to (n_queries, stride) = the sums of `n` rows, each times its weights (n_queries, MAX_RUN): of
 * their numbers `n_vectors` vectors, from number `first` on. */
INLINE void FN(sum_numbers)(const float *weights, int n_queries, const run *values, int64_t n,
                            float *to, int64_t stride, int64_t first, int n_vectors, int kind)
{
    VECTOR sums[TOGETHER][8] = {0};
    for (int64_t r = 0; r < n; r++) {
        const char *row = values->rows + r * values->row_bytes;
        float scale = kind == INT8 ? values->scales[r] : 1;
#pragma GCC unroll 8
        for (int j = 0; j < n_vectors; j++) {
            VECTOR numbers = FN(load)(row, first + j * LANES, kind);
#pragma GCC unroll 8
            for (int i = 0; i < n_queries; i++)
                sums[i][j] += weights[i * MAX_RUN + r] * scale * numbers;
        }
    }
    for (int i = 0; i < n_queries; i++)
        for (int j = 0; j < n_vectors; j++)
            *(VECTOR *)(to + i * stride + first + j * LANES) = sums[i][j];
}

/* The same of all `width` numbers. */
INLINE void FN(sum_rows)(const float *weights, int n_queries, const run *values, int64_t n, float *to,
                         int64_t stride, int64_t width, int kind)
{
    const int n_vectors = n_queries == 1 ? 8 : N_SUMS / TOGETHER;
    int64_t at = 0;
    for (; at + n_vectors * LANES <= width; at += n_vectors * LANES)
        FN(sum_numbers)(weights, n_queries, values, n, to, stride, at, n_vectors, kind);
    for (; n_vectors > 4 && at + 4 * LANES <= width; at += 4 * LANES)
        FN(sum_numbers)(weights, n_queries, values, n, to, stride, at, 4, kind);
    for (; at < width; at += LANES)
        FN(sum_numbers)(weights, n_queries, values, n, to, stride, at, 1, kind);
}

/* Part of c (rows, n) += a (rows, k) b (k, n): four rows, and so many vectors. */
INLINE void FN(multiply_tile)(const float *a, int64_t a_row, const float *b, int64_t b_row,
                              float *c, int64_t c_row, int64_t k, int n_vectors)
{
    VECTOR sums[TILE_ROWS][N_SUMS / TILE_ROWS];
    for (int i = 0; i < TILE_ROWS; i++)
        for (int j = 0; j < n_vectors; j++)
            sums[i][j] = *(const VECTOR *)(c + i * c_row + j * LANES);
    for (int64_t l = 0; l < k; l++) {
        VECTOR right[N_SUMS / TILE_ROWS];
        for (int j = 0; j < n_vectors; j++)
            right[j] = *(const VECTOR *)(b + l * b_row + j * LANES);
        for (int i = 0; i < TILE_ROWS; i++)
            for (int j = 0; j < n_vectors; j++)
                sums[i][j] += a[i * a_row + l] * right[j];
    }
    for (int i = 0; i < TILE_ROWS; i++)
        for (int j = 0; j < n_vectors; j++)
            *(VECTOR *)(c + i * c_row + j * LANES) = sums[i][j];
}

/* c (rows, n) += a (rows, k) b (k, n), with rows a multiple of TILE_ROWS and n one of PADDED. */
INLINE void FN(multiply_floats)(const float *a, int64_t a_row, const float *b, int64_t b_row,
                                float *c, int64_t c_row, int64_t rows, int64_t k, int64_t n)
{
    const int n_vectors = N_SUMS / TILE_ROWS;
    for (int64_t i = 0; i < rows; i += TILE_ROWS) {
        int64_t j = 0;
        for (; j + n_vectors * LANES <= n; j += n_vectors * LANES)
            FN(multiply_tile)(a + i * a_row, a_row, b + j, b_row, c + i * c_row + j, c_row, k,
                              n_vectors);
        for (; j < n; j += LANES)
            FN(multiply_tile)(a + i * a_row, a_row, b + j, b_row, c + i * c_row + j, c_row, k, 1);
    }
}

#undef N_SUMS
#undef SIGNED_WHOLE
#undef WHOLE
#undef HALVES
#undef VECTOR
#undef FN
#undef PASTE_VALUE
#undef PASTE
