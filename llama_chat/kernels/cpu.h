/* Levels: instruction sets that the kernels are compiled for. */

#ifndef CPU_H
#define CPU_H

#include "kernel_set.h"

int n_levels(void);

int level_is_supported(int level);

/* True if this processor is faster with the level's base. */
int level_is_slow(int level);

/* Return the functions of a level, completed from its base. */
kernel_set kernels_of(int level);

#endif
