// Convolutions of 3 x 3 by Winograd's minimal filtering F(4 x 4, 3 x 3): the transforms before and after the
// matrix products.
//
// After Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, section 4.3. A tile of 4 x 4
// outputs needs 36 products per pair of channels instead of 144. Images are channels-last, [H, W, C].
#pragma once

#include "stm_fast/matrix.h"

namespace stm_fast {

inline constexpr Index winograd_tile = 4;     // outputs of a tile, in each direction
inline constexpr Index winograd_points = 36;  // values of a tile between the transforms
inline constexpr Index winograd_lanes = 8;    // the number of channels is a multiple of it

// Some rows of tiles of an image.
struct WinogradStrip {
  Index height, width, channels;  // of the image
  Index first_row, rows;          // of tiles

  Index tiles_across() const { return divide_up(width, winograd_tile); }
};

// One row of tiles of the input, padded with zeros: image [H, W, C] -> points [36, tiles of the strip, C].
// With relu, negative inputs count as 0.
void winograd_input(const WinogradStrip& strip, Index row, const float* picture, bool relu, float* points);

// One row of tiles of the output: points [36, tiles of the strip, K] -> image [H, W, K], plus a bias [K] and, unless it
// is null, a residual [H, W, K].
void winograd_output(const WinogradStrip& strip, Index row, const float* points, const float* bias,
                     const float* residual, float* picture);

}  // namespace stm_fast
