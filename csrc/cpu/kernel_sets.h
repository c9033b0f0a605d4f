// The tables of kernels that an instruction set exports.
#pragma once

#include "stm_fast/bottleneck_kernels.h"
#include "stm_fast/convolution_kernels.h"
#include "stm_fast/tile_kernels.h"
#include "stm_fast/winograd_kernels.h"

namespace stm_fast {

// Products of floats and doubles, which every set has.
struct FloatKernels {
  TileKernels<float> floats;
  TileKernels<double> doubles;
  BottleneckKernels bottlenecks;
  ConvolutionKernels<float, float> convolutions;
  AllWinogradKernels winograd;
};

// Products of bfloat16 numbers.
struct PairKernels {
  ForwardKernels<BFloat16Pair> forward;
  QuantizedKernels<BFloat16Pair> quantized;
  PixelKernels<BFloat16Pair> bottlenecks;
  ConvolutionKernels<BFloat16Pair, BFloat16> convolutions;
  WinogradKernels<BFloat16, BFloat16> winograd;
};

// Products of bfloat16 numbers by the tiles of AMX.
struct AmxKernels {
  ForwardKernels<BFloat16Pair> forward;
  QuantizedKernels<BFloat16Pair> quantized;
};

}  // namespace stm_fast
