// The tile kernels for any machine: 128-bit vectors, which every x86-64 and every 64-bit ARM has.
#define STM_FAST_ISA portable
#define STM_FAST_TARGET
#define STM_FAST_VECTOR_BYTES 16
#define STM_FAST_GROUP_ROWS 4
#define STM_FAST_VECTORS 2

#include "kernel_sets.h"
#include "tile_kernels_source.h"
// which need the macros of the first
#include "bottleneck_kernels_source.h"
#include "convolution_kernels_source.h"
#include "winograd_kernels_source.h"

namespace stm_fast::portable {

extern const FloatKernels float_kernels = {
    table<float>, table<double>, bottleneck_table, convolution_table<float, float>, all_winograd_tables,
};

}  // namespace stm_fast::portable
