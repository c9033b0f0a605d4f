// The tiles of AVX-512 and the arithmetic of vdpbf16ps on any machine, for tests.
// every function with vectors of this size is inlined, so no calling convention can differ
#pragma GCC diagnostic ignored "-Wpsabi"

#define STM_FAST_ISA emulated
#define STM_FAST_TARGET
#define STM_FAST_VECTOR_BYTES 64
#define STM_FAST_GROUP_ROWS 8
#define STM_FAST_VECTORS 3
#define STM_FAST_ROLLED
#define STM_FAST_MULTIPLY_ADD_PAIRS(sum, left, right) \
  multiply_add_half(multiply_add_half(sum, (left), (right)), (left) << 16, (right) << 16)

#include <cstdint>

namespace stm_fast::emulated {

typedef float Floats __attribute__((vector_size(64), aligned(4), may_alias));
typedef std::uint32_t Bits __attribute__((vector_size(64), aligned(4), may_alias));

// Denormal numbers are treated as 0.
inline __attribute__((always_inline)) Floats flushed(Bits x) {
  return reinterpret_cast<Floats>((x & 0x7f800000u) != 0u ? x : x & 0x80000000u);
}

// sum + left * right for the bfloat16 numbers in the upper halves: products are exact, the sum is rounded once.
inline __attribute__((always_inline)) Floats multiply_add_half(Floats sum, Bits left, Bits right) {
  const Floats exact = flushed(left & 0xffff0000u) * flushed(right & 0xffff0000u);
  return flushed(reinterpret_cast<Bits>(flushed(reinterpret_cast<Bits>(sum)) + exact));
}

}  // namespace stm_fast::emulated

#include "tile_kernels_source.h"
// which need the macros of the first
#include "bottleneck_kernels_source.h"
#include "convolution_kernels_source.h"
#include "winograd_kernels_source.h"

namespace stm_fast::emulated {

extern const TileKernels<float> float_kernels = table<float>;
extern const TileKernels<double> double_kernels = table<double>;
extern const ForwardKernels<BFloat16Pair> pair_kernels = forward_table<BFloat16Pair>;
extern const BottleneckKernels bottleneck_kernels = bottleneck_table;
extern const AllWinogradKernels winograd_kernels = all_winograd_tables;
extern const PixelKernels<BFloat16Pair> bottleneck_pair_kernels = pixel_table<BFloat16Pair>;
extern const WinogradKernels<BFloat16, BFloat16> winograd_pair_kernels = winograd_table<BFloat16, BFloat16>;
extern const ConvolutionKernels<float, float> convolution_kernels = convolution_table<float, float>;
extern const ConvolutionKernels<BFloat16Pair, BFloat16> convolution_pair_kernels =
    convolution_table<BFloat16Pair, BFloat16>;

}  // namespace stm_fast::emulated
