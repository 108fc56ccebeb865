#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* From here on only: what a header defines is for every processor. */
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,fma")
#define LANES 16
#include "winograd_body.h"

int winograd_512(const winograd_work *w) { return compute(w); }
#endif
