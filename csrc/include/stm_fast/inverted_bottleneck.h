// An inverted bottleneck of MobileNet and EfficientNet-Lite without materializing the expanded image, and the stem.
//
//   y = project(relu6(depthwise(relu6(expand(x))))) [+ x]
//
// expand and project are 1 x 1 convolutions; the depthwise convolution is padded with zeros as TensorFlow's "SAME". The
// channels of the expanded image are processed in blocks, one strip of output rows at a time: for each block only the
// rows that a row of outputs reads are kept, in a ring, and its outputs are added to those of the previous blocks.
// Images are channels-last, [H, W, C]; sums and everything between x and y are float, except that the outputs of the
// depthwise convolution are rounded to bfloat16 before products of bfloat16.
#pragma once

#include "stm_fast/memory_read.h"

namespace stm_fast {

// A convolution's window: `kernel` and `stride` in both directions, on an image of any size.
struct Window {
  Index kernel, stride;
  Index height, width;  // of the inputs

  Index out_height() const { return divide_up(height, stride); }
  Index out_width() const { return divide_up(width, stride); }
  // Rows and columns of zeros before the first.
  Index top() const { return before(height); }
  Index left() const { return before(width); }

 private:
  Index before(Index side) const {
    const Index missing = (divide_up(side, stride) - 1) * stride + kernel - side;
    return missing > 0 ? missing / 2 : 0;
  }
};

// Weights of products are in panels (bottleneck_kernels.h); bfloat16 weights in pairs along the depth, with a zero
// after an odd last one. Other rows are padded with zeros to a whole panel.
template <class Stored>
struct Bottleneck {
  Window window;  // kernel 3 or 5, stride 1 or 2
  Index channels, expanded, out_channels;
  const Stored* expand;         // [panels of expanded][channels][panel_lanes], or null: expanded = channels
  const float* expand_bias;     // [expanded]
  const float* depthwise;       // [kernel * kernel, expanded]
  const float* depthwise_bias;  // [expanded]
  const Stored* project;        // [panels of out_channels][expanded][panel_lanes]
  const float* project_bias;    // [out_channels]
};

// x [batch, H, W, channels], residual null or like y [batch, H / stride, W / stride, out_channels]; Stored is float or
// BFloat16.
template <class Stored>
void inverted_bottleneck(const Bottleneck<Stored>& bottleneck, Index batch, const Stored* x, const Stored* residual,
                         Stored* y, const Parallel& parallel);

// A convolution of few channels with an activation, y = relu6(convolution(x)): the stem of such a network.
struct FirstConvolution {
  Window window;  // kernel 3 or 5, any stride
  Index channels, out_channels;
  const float* weight;  // [panels of out_channels][kernel][kernel][channels][panel_lanes]
  const float* bias;    // [out_channels], padded to a whole panel
};

template <class Stored>
void first_convolution(const FirstConvolution& convolution, Index batch, const Stored* x, Stored* y,
                       const Parallel& parallel);

}  // namespace stm_fast
