/* The most operations that one core does with an instruction: in registers, if nothing else is said.

   Each function runs independent chains of the instruction, so many that its latency is hidden, for
   ROUNDS rounds, and returns the operations: a multiplication and an addition count as two. */

#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ROUNDS 20000000L
/* Chains that fit in the 16 registers of AVX2 and in the 32 of AVX-512. */
enum { FEW = 12, MANY = 20 };
/* Unrolled, so that the chains are in registers. */
#define EACH_CHAIN(n) _Pragma("GCC unroll 20") for (int chain = 0; chain < (n); chain++)

/* Keep the compiler from computing the sums without the instruction, or none at all. */
#define KEEP(value) __asm__ volatile("" : "+x"(value))

#define PEAK(name, features, n_chains, vector, zero, step, operations)              \
    __attribute__((visibility("default"), target(features))) double name(void) {    \
        vector sums[n_chains], a = zero(), b = zero();                              \
        EACH_CHAIN(n_chains) sums[chain] = zero();                                  \
        KEEP(a);                                                                    \
        KEEP(b);                                                                    \
        for (long round = 0; round < ROUNDS; round++) EACH_CHAIN(n_chains) {        \
            sums[chain] = step;                                                     \
            KEEP(sums[chain]);                                                      \
        }                                                                           \
        return (double)ROUNDS * (n_chains) * (operations);                          \
    }

PEAK(fma_avx2, "avx2,fma", FEW, __m256, _mm256_setzero_ps, _mm256_fmadd_ps(a, b, sums[chain]), 16)
PEAK(fma_avx512, "avx512f", MANY, __m512, _mm512_setzero_ps, _mm512_fmadd_ps(a, b, sums[chain]), 32)
PEAK(bytes_avx2, "avx2", FEW, __m256i, _mm256_setzero_si256,
     _mm256_add_epi16(_mm256_maddubs_epi16(sums[chain], a), b), 64)
PEAK(bytes_avx512_vnni, "avx512f,avx512vnni", MANY, __m512i, _mm512_setzero_si512,
     _mm512_dpbusd_epi32(sums[chain], a, b), 128)

/* Groups of columns as panels have them: products of bytes, whose sum is a float that is scaled and
   added, and perhaps multiplied minima. Only the products of bytes are counted. */
#define PEAK_OF_GROUPS(name, n_products, has_minima)                                \
    __attribute__((visibility("default"), target("avx512f,avx512vnni")))            \
    double name(void) {                                                             \
        __m512i a = _mm512_setzero_si512(), b = a, first = a;                       \
        __m512 x = _mm512_setzero_ps(), y = x, totals[MANY];                        \
        EACH_CHAIN(MANY) totals[chain] = x;                                         \
        KEEP(a);                                                                    \
        KEEP(b);                                                                    \
        KEEP(first);                                                                \
        KEEP(x);                                                                    \
        KEEP(y);                                                                    \
        for (long round = 0; round < ROUNDS / 8; round++) EACH_CHAIN(MANY) {        \
            __m512i sum = first;                                                    \
            _Pragma("GCC unroll 8") for (int i = 0; i < n_products; i++) {          \
                KEEP(sum);                                                          \
                sum = _mm512_dpbusd_epi32(sum, a, b);                               \
            }                                                                       \
            KEEP(sum);                                                              \
            const __m512 scaled = _mm512_fmadd_ps(_mm512_castsi512_ps(sum), x, y);  \
            totals[chain] = _mm512_fmadd_ps(scaled, y, totals[chain]);              \
            KEEP(totals[chain]);                                                    \
            if (has_minima)                                                         \
                totals[chain] = _mm512_fmadd_ps(x, y, totals[chain]);               \
            KEEP(totals[chain]);                                                    \
        }                                                                           \
        return (double)(ROUNDS / 8) * MANY * n_products * 128;                      \
    }

PEAK_OF_GROUPS(groups_of_32_avx512_vnni, 8, 0)
PEAK_OF_GROUPS(groups_of_32_with_minima_avx512_vnni, 8, 1)
PEAK_OF_GROUPS(groups_of_16_avx512_vnni, 4, 0)

__attribute__((visibility("default"), target("avx512f,avx512bf16"))) double bf16_avx512(void) {
    __m512 sums[MANY];
    __m512i bits = _mm512_setzero_si512();
    __m512bh a, b;
    EACH_CHAIN(MANY) sums[chain] = _mm512_setzero_ps();
    KEEP(bits);
    memcpy(&a, &bits, sizeof a);
    memcpy(&b, &bits, sizeof b);
    for (long round = 0; round < ROUNDS; round++) EACH_CHAIN(MANY) {
        sums[chain] = _mm512_dpbf16_ps(sums[chain], a, b);
        KEEP(sums[chain]);
    }
    return (double)ROUNDS * MANY * 64;
}

/* Four chains, of two tiles times two. Linux is asked for the use of tiles; see kernels/amx.c. */
__attribute__((target("amx-tile"))) static void begin_tiles(void) {
    static const struct {
        uint8_t palette, zeros[15];
        uint16_t row_bytes[16];
        uint8_t n_rows[16];
    } shapes = {1, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    syscall(SYS_arch_prctl, 0x1023, 18);
    _tile_loadconfig(&shapes);
}

#define FOUR_PRODUCTS(product) \
    do {                       \
        product(0, 4, 6);      \
        product(1, 4, 7);      \
        product(2, 5, 6);      \
        product(3, 5, 7);      \
    } while (0)

#define PEAK_OF_TILES(name, features, product, operations)                          \
    __attribute__((visibility("default"), target(features))) double name(void) {    \
        begin_tiles();                                                              \
        for (long round = 0; round < ROUNDS; round++) FOUR_PRODUCTS(product);       \
        _tile_release();                                                            \
        return (double)ROUNDS * 4 * (operations);                                   \
    }

PEAK_OF_TILES(bytes_amx, "amx-tile,amx-int8", _tile_dpbssd, 2 * 16 * 16 * 64)
PEAK_OF_TILES(bf16_amx, "amx-tile,amx-bf16", _tile_dpbf16ps, 2 * 16 * 16 * 32)

/* The same with each tile loaded before its two products: those on the left from L1, and
   those on the right from `n_blocks` of as many tiles, which only L2 may hold. */
enum { TILE_BYTES = 1024, BLOCK_BYTES = 16 * TILE_BYTES };

#define PEAK_OF_LOADED_TILES(name, load_right, n_blocks)                                    \
    __attribute__((visibility("default"), target("amx-tile,amx-bf16"))) double name(void) { \
        static char left[BLOCK_BYTES], right[(n_blocks) * BLOCK_BYTES];                     \
        const long n_rounds = ROUNDS / 32 / (n_blocks);                                     \
        memset(left, 1, sizeof left); /* or they would all be one page of zeros */          \
        memset(right, 1, sizeof right);                                                     \
        begin_tiles();                                                                      \
        for (long round = 0; round < n_rounds; round++)                                     \
            for (long block = 0; block < (n_blocks); block++)                               \
                for (long at = 0; at < BLOCK_BYTES; at += 2 * TILE_BYTES) {                 \
                    const char *from = right + block * BLOCK_BYTES + at;                    \
                    _tile_loadd(4, left + at, 64);                                          \
                    load_right(6, from, 64);                                                \
                    _tile_loadd(5, left + at + TILE_BYTES, 64);                             \
                    load_right(7, from + TILE_BYTES, 64);                                   \
                    FOUR_PRODUCTS(_tile_dpbf16ps);                                          \
                }                                                                           \
        _tile_release();                                                                    \
        return (double)n_rounds * (n_blocks) * 8 * 4 * (2 * 16 * 16 * 32);                  \
    }

PEAK_OF_LOADED_TILES(bf16_from_first_cache_amx, _tile_loadd, 1)
PEAK_OF_LOADED_TILES(bf16_from_private_cache_amx, _tile_stream_loadd, 32)
