#include "winograd.h"

int winograd(const winograd_work *w, int bits)
{
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    if (bits >= 512 && avx512)
        return winograd_512(w);
    if (bits >= 256 && avx2)
        return winograd_256(w);
#endif
    (void)bits;
    return winograd_128(w);
}
