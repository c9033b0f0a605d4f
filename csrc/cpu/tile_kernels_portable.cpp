// The tile kernels for any machine: 128-bit vectors, which every x86-64 and every 64-bit ARM has.
#define STM_FAST_ISA portable
#define STM_FAST_TARGET
#define STM_FAST_VECTOR_BYTES 16
#define STM_FAST_GROUP_ROWS 4
#define STM_FAST_VECTORS 2

#include "tile_kernels_source.h"
// which need the macros of the first
#include "bottleneck_kernels_source.h"
#include "convolution_kernels_source.h"
#include "winograd_kernels_source.h"

namespace stm_fast::portable {

extern const TileKernels<float> float_kernels = table<float>;
extern const TileKernels<double> double_kernels = table<double>;
extern const BottleneckKernels bottleneck_kernels = bottleneck_table;
extern const AllWinogradKernels winograd_kernels = all_winograd_tables;
extern const ConvolutionKernels<float, float> convolution_kernels = convolution_table<float, float>;

}  // namespace stm_fast::portable
