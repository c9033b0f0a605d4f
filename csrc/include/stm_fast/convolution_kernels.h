// The inner loops of convolution.h, compiled once for each instruction set and chosen with the tile kernels.
//
// Images are channels-last, with output channels in SIMD lanes. Weights are stored in the panels of
// bottleneck_kernels.h.
#pragma once

#include "stm_fast/bottleneck_kernels.h"

namespace stm_fast {

inline constexpr Index most_window_rows = 7;

// y = max(A B + bias [+ y], least) for some pixels of outputs, rounded once; NaN stays NaN. The depth of A is split
// into parts: one per row of inputs of a convolution's window.
template <class Element, class Stored>
struct ConvolvedPixels {
  Index pixels;
  Index columns;  // output channels
  Index parts;
  Index depth;                         // of a part, in elements
  const Element* a[most_window_rows];  // [parts] of [pixels, depth]
  Index a_stride;                      // from a pixel to the next
  const Element* b;                    // [panels][parts * depth][panel_lanes]
  const float* bias;                   // [columns], padded to a whole panel
  Stored* y;                           // [pixels, columns]
  bool add;                            // to the previous y
  float least;                         // smaller results become this: 0 for relu, or -infinity
};

// A row of maxima over windows of 3 x 3 inputs, at every other pixel; windows end at the border. NaN stays NaN.
template <class Stored>
struct PooledRow {
  Index width;  // of the inputs
  Index channels;
  const Stored* lines[3];  // [width, channels]; the same line more than once at the border
  Stored* y;               // [width / 2 rounded up, channels]
};

template <class Element, class Stored>
struct ConvolutionKernels {
  void (*convolve)(const ConvolvedPixels<Element, Stored>&);
  void (*pool)(const PooledRow<Stored>&);
};

// The kernels in use; throws as tile_kernels() does.
const ConvolutionKernels<float, float>& convolution_kernels();

// Kernels for products of bfloat16; null if the machine has none that are faster than products of floats.
const ConvolutionKernels<BFloat16Pair, BFloat16>* convolution_pair_kernels();

}  // namespace stm_fast
