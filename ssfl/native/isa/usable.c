#include "table.h"

const kernel_table *const *usable_kernels(void)
{
    static const kernel_table *const all[] = {
#ifdef HAS_WIDER_SETS
        &kernels_avx512, &kernels_avx2,
#endif
        &kernels_baseline, 0};
    int first = 0;
#ifdef HAS_WIDER_SETS
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    first = avx512 ? 0 : avx2 ? 1 : 2;
#endif
    return all + first;
}
