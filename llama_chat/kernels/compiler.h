/* Differences between compilers and architectures. */

#ifndef COMPILER_H
#define COMPILER_H

/* Kernels take layout, tile size and type as arguments that are constant at each call; they are
 * only fast if they are inlined there. */
#define INLINE static inline __attribute__((always_inline))

/* Compile a function once for all of its callers. */
#define NOINLINE __attribute__((noinline))

/* Bytes that the processor reads from memory at a time. */
enum { CACHE_LINE = 64 };

/* All other functions are hidden: see -fvisibility in hatch_build.py. */
#define EXPORT __attribute__((visibility("default")))

#if defined(__x86_64__) && defined(__GNUC__)
#define X86 1
#else
#define X86 0
#endif

#if defined(__aarch64__) && defined(__GNUC__)
#define ARM64 1
#else
#define ARM64 0
#endif

/* Makers of processors, for what instruction sets do not tell. */
#if X86
INLINE int is_amd(void) { return __builtin_cpu_is("amd"); }
INLINE int is_intel(void) { return __builtin_cpu_is("intel"); }
#else
INLINE int is_amd(void) { return 0; }
INLINE int is_intel(void) { return 0; }
#endif

#define PRAGMA(text) _Pragma(#text)

/* Compile the functions between BEGIN_TARGET("avx2,fma") and END_TARGET for these instructions. */
#ifdef __clang__
#define BEGIN_TARGET(features)                                                                     \
    PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define END_TARGET PRAGMA(clang attribute pop)
#else
#define BEGIN_TARGET(features) PRAGMA(GCC push_options) PRAGMA(GCC target(features))
#define END_TARGET PRAGMA(GCC pop_options)
#endif

/* Clang does not vectorize maxima of floats, because of NaN, and would warn at each of them. */
#ifdef __clang__
#pragma clang diagnostic ignored "-Wpass-failed"
#endif

/* Unroll the loop that follows. */
#ifdef __clang__
#define UNROLL(n) PRAGMA(clang loop unroll_count(n))
#else
#define UNROLL(n) PRAGMA(GCC unroll n)
#endif

#endif
