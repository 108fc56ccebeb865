#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* From here on only: what a header defines is for every processor. */
#pragma GCC target("avx2,fma")
#define LANES 8
#include "winograd_body.h"

int winograd_256(const winograd_work *w) { return compute(w); }
#endif
