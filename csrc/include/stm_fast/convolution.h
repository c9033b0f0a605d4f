// Convolutions as products of pixels in place: no copy of the inputs, and bias, sum and relu before results are stored.
//
// A row of the window is one part of the depth: the inputs of a row of outputs are read where they are, each pixel
// `stride` after the one before. So a convolution of 1 x 1 is one product of all pixels, and images of others contain
// their own padding. Images are channels-last, [H, W, C].
#pragma once

#include "stm_fast/memory_read.h"

namespace stm_fast {

// y = [relu](convolution(x) + bias [+ y]). Stored is float, or BFloat16 with an even number of channels.
template <class Stored>
struct Convolution {
  Index kernel, stride;                  // in both directions
  Index batch, height, width, channels;  // of the inputs, with padding
  Index out_channels;
  // [panels of out_channels][kernel][kernel][channels][panel_lanes]; bfloat16 in pairs of channels
  const Stored* weight;
  const float* bias;  // [out_channels], padded to a whole panel
  bool add, relu;

  Index out_height() const { return outputs(height); }
  Index out_width() const { return outputs(width); }

 private:
  Index outputs(Index side) const { return side < kernel ? 0 : (side - kernel) / stride + 1; }
};

// x [batch, height, width, channels] to y [batch, out_height, out_width, out_channels]. bfloat16 only if the machine
// has products of it.
template <class Stored>
void convolve(const Convolution<Stored>& convolution, const Stored* x, Stored* y, const Parallel& parallel);

// The stem of a ResNet: the maximum of relu(convolution(x) + bias [+ added]) over windows of 3 x 3 with stride 2 and
// padding 1, without storing the map between them. Ignores `add` and `relu`.
// added [1 or batch, out_height, out_width, out_channels] or null; y [batch, out_height / 2, out_width / 2,
// out_channels], rounded up.
template <class Stored>
void convolve_and_pool(const Convolution<Stored>& convolution, const Stored* x, const Stored* added, bool shared,
                       Stored* y, const Parallel& parallel);

// A convolution of 3 x 3 with stride 1, padding 1 and few output channels: one product of each pixel with the weights
// of all nine taps, whose results are then added where they belong.
template <class Stored>
struct NarrowConvolution {
  Index batch, height, width, channels;
  Index out_channels;
  const Stored* weight;  // [panels of 9 * out_channels][channels][panel_lanes], taps row by row
  const float* bias;     // [out_channels]
  bool relu;             // of the inputs
};

template <class Stored>
void convolve_narrow(const NarrowConvolution<Stored>& convolution, const Stored* x, Stored* y,
                     const Parallel& parallel);

}  // namespace stm_fast
