#include "table.h"

#ifdef HAS_WIDER_SETS
#include <immintrin.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Set only after the system headers, because their functions must work on every processor. */
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define SET "avx2"
#define TABLE kernels_avx2
#define LANES 8
#include "kernels.h"

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
