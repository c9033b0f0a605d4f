// The inner loops of inverted_bottleneck.h, compiled once for each instruction set and chosen with the tile kernels.
//
// Images and rows are channels-last, with channels in SIMD lanes. Weights of a product are stored in panels of
// `panel_lanes` columns, [panels][depth][panel_lanes], padded with zeros: a multiple of every set's vectors.
#pragma once

#include <limits>
#include <type_traits>

#include "stm_fast/element.h"
#include "stm_fast/matrix.h"

namespace stm_fast {

inline constexpr Index panel_lanes = 16;
inline constexpr Index pixel_group = 6;  // outputs that the depthwise kernels compute at once
inline constexpr Index most_taps = 5;    // of a depthwise convolution, in each direction
inline constexpr float activation_limit = 6.0f;

// C = A B for a row of pixels. The depth of A is split into parts: one per row of inputs of a convolution, or one.
template <class Element>
struct PixelProduct {
  Index pixels;
  Index columns;  // readable and writable up to a whole number of panels
  Index parts;
  Index depth;  // of a part, in elements
  // elements that are added one after another, for a plain product of one part; C is the sum of such sums
  Index chain = std::numeric_limits<Index>::max();
  const Element* a[most_taps];  // [parts] of [pixels, depth]
  Index a_stride;               // from a pixel to the next
  const Element* b;             // [panels][parts * depth][panel_lanes]
  Index panel_stride;           // from a panel to the next
  float* c;                     // [pixels, columns]
  Index c_stride;
  const float* bias;  // [columns], for an activated product
  bool add;           // to C, for a plain product
};

// A row of outputs. Every line of inputs includes its border, so that all taps of all outputs can be read.
struct DepthwiseRow {
  Index pixels;    // a multiple of pixel_group
  Index channels;  // a multiple of panel_lanes
  Index stride;    // from a pixel to the next, of lines and outputs
  const float* lines[most_taps];
  const float* weight;  // [kernel * kernel, channels]
  Index weight_stride;
  const float* bias;  // [channels]
  void* out;          // float, or BFloat16 if pairs are multiplied
};

// y = c + bias [+ residual], rounded once.
template <class Stored>
struct FinishedRow {
  Index pixels;
  Index channels;
  const float* c;
  Index c_stride;
  const float* bias;       // [channels], readable up to a whole number of panels; or null
  const Stored* residual;  // [pixels, channels] or null
  Stored* y;               // [pixels, channels]
};

// The kernels that depend on the type of the multiplied elements.
template <class Element>
struct PixelKernels {
  void (*activated)(const PixelProduct<Element>&);  // C = relu6(A B + bias)
  void (*plain)(const PixelProduct<Element>&);      // C = A B, or C += A B
  // relu6 of a depthwise convolution by [kernel is 5][stride is 2]
  void (*depthwise[2][2])(const DepthwiseRow&);
};

struct BottleneckKernels : PixelKernels<float> {
  void (*finish)(const FinishedRow<float>&);
  void (*finish_bfloat16)(const FinishedRow<BFloat16>&);
  void (*widen)(const BFloat16* from, Index count, float* to);
  // [count] pairs, panel_lanes adjacent, to twice as many rows of panel_lanes numbers
  void (*widen_pairs)(const BFloat16Pair* from, Index count, float* to);
};

// The kernels in use; throws as tile_kernels() does.
const BottleneckKernels& bottleneck_kernels();

// Kernels for products of bfloat16; null if the machine has none that are faster than products of floats.
const PixelKernels<BFloat16Pair>* bottleneck_pair_kernels();

// Those for Element; pairs must be available.
template <class Element>
const PixelKernels<Element>& pixel_kernels() {
  if constexpr (std::is_same_v<Element, float>) {
    return bottleneck_kernels();
  } else {
    return *bottleneck_pair_kernels();
  }
}

}  // namespace stm_fast
