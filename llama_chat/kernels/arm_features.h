/* Optional instructions of AArch64: what compilers support, and what this processor has. */

#ifndef ARM_FEATURES_H
#define ARM_FEATURES_H

#include <math.h> /* here, before a level selects its instructions */

#include "compiler.h"

#if ARM64

/* Compilers that know these instructions, and compile single functions for them. */
#if defined(__clang__) ? __clang_major__ >= 16 : __GNUC__ >= 10
#define HAS_ARM_TARGETS 1
#else
#define HAS_ARM_TARGETS 0
#endif

#if defined(__linux__)
#include <sys/auxv.h>

/* Bits in https://docs.kernel.org/arch/arm64/elf_hwcaps.html; older headers lack them. */
INLINE int has_dotprod(void) { return getauxval(AT_HWCAP) >> 20 & 1; } /* HWCAP_ASIMDDP */
INLINE int has_i8mm(void) { return getauxval(AT_HWCAP2) >> 13 & 1; }   /* HWCAP2_I8MM */

#elif defined(__APPLE__)
#include <sys/sysctl.h>

INLINE int has_feature(const char *name)
{
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, NULL, 0) == 0 && value;
}

INLINE int has_dotprod(void) { return has_feature("hw.optional.arm.FEAT_DotProd"); }
INLINE int has_i8mm(void) { return has_feature("hw.optional.arm.FEAT_I8MM"); }

#else
INLINE int has_dotprod(void) { return 0; }
INLINE int has_i8mm(void) { return 0; }
#endif

#else
#define HAS_ARM_TARGETS 0
#endif

#endif
