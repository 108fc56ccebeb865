#include "table.h"

#ifdef HAS_WIDER_SETS
#include <immintrin.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Set only after the system headers, because their functions must work on every processor. */
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,fma")
#endif

#define SET "avx512"
#define TABLE kernels_avx512
#define LANES 16
#include "kernels.h"

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
