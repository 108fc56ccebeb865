/* All kernels for one instruction set. The including file defines LANES, the number of float32 in one register, and
   TABLE, its table in table.h, and compiles for the instruction set from here on. */
#include "simd.h"

#include "../group_conv/kernel.h"
#include "../group_norm/backward.h"
#include "../group_norm/forward.h"
#include "../memory_bound/channels_kernel.h"
#include "../memory_bound/images_kernel.h"
#include "../memory_bound/vectors_kernel.h"
#include "../winograd/kernel.h"

const kernel_table TABLE = {
    .name = SET,
    .norm_forward = norm_forward,
    .norm_backward = norm_backward,
    .conv_forward = conv_forward,
    .conv_backward = conv_backward,
    .winograd = winograd,
    .expand = expand,
    .multiply_by_mask = multiply_by_mask,
    .weighted_sum = weighted_sum,
    .gather_bytes = gather_bytes,
    .gather_floats = gather_floats,
    .gather_slices = gather_slices,
    .scatter_slices = scatter_slices,
};
