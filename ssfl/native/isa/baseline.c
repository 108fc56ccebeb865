#include "table.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif
#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#define SET "sse2"
#elif defined(__aarch64__)
#define SET "neon"
#else
#define SET "plain"
#endif
#define TABLE kernels_baseline
#define LANES 4
#include "kernels.h"
