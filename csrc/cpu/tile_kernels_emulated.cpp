// The tiles of AVX-512 and the arithmetic of vdpbf16ps and vpdpbusd on any machine, for tests. Not in wheels for an
// index.
#if !defined(STM_FAST_RELEASE)

// every function with vectors of this size is inlined, so no calling convention can differ
#pragma GCC diagnostic ignored "-Wpsabi"

#include "emulated_products.h"

#define STM_FAST_ISA emulated
#define STM_FAST_TARGET
#define STM_FAST_VECTOR_BYTES 64
#define STM_FAST_GROUP_ROWS 8
#define STM_FAST_VECTORS 3
#define STM_FAST_ROLLED
#define STM_FAST_MULTIPLY_ADD_PAIRS(sum, left, right) \
  multiply_add_half(multiply_add_half(sum, (left), (right)), (left) << 16, (right) << 16)

#define STM_FAST_MULTIPLY_ADD_QUADS(sum, left, right) multiply_add_quads(sum, left, right)

#include "kernel_sets.h"
#include "tile_kernels_source.h"
// which need the macros of the first
#include "bottleneck_kernels_source.h"
#include "convolution_kernels_source.h"
#include "quantized_kernels_source.h"
#include "winograd_kernels_source.h"

namespace stm_fast::emulated {

extern const FloatKernels float_kernels = {
    table<float>, table<double>, bottleneck_table, convolution_table<float, float>, all_winograd_tables,
};
extern const PairKernels pair_kernels = {
    forward_table<BFloat16Pair>,
    quantized_table<BFloat16Pair>,
    pixel_table<BFloat16Pair>,
    convolution_table<BFloat16Pair, BFloat16>,
    winograd_table<small_tile, BFloat16, BFloat16>,
};
extern const QuantizedKernels<ByteQuad> byte_kernels = quantized_table<ByteQuad>;

}  // namespace stm_fast::emulated

#endif
