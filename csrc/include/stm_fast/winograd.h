// Convolutions of 3 x 3 by Winograd's minimal filtering F(n x n, 3 x 3): transforms before and after matrix products.
//
// After Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, section 4.3. A tile of 4 x 4
// outputs needs 36 products per pair of channels instead of 144, one of 6 x 6 outputs 64 instead of 324, with larger
// rounding errors. Images are channels-last, [H, W, C].
//
// Transformed inputs and weights are the values of polynomials at the points 0, infinity and pairs of a and -a. With
// the paper's pairs 1 and 2 for 4 x 4 outputs, products of bfloat16 numbers have twice the error; see Alam et al.,
// "Winograd convolution for deep neural networks: efficient point selection", 2022.
#pragma once

#include <array>

#include "stm_fast/matrix.h"
#include "stm_fast/memory_read.h"

namespace stm_fast {

// Outputs of a tile, in each direction; the larger ones for floats only.
inline constexpr Index small_tile = 4, large_tile = 6;

// Values of a tile between the transforms.
constexpr Index points_of_tile(Index tile) { return (tile + 2) * (tile + 2); }

template <Index tile>
inline constexpr std::array<double, 2> winograd_pairs = {0.625, 1.6};
template <>
inline constexpr std::array<double, 3> winograd_pairs<large_tile> = {1.0, 2.0, 0.5};

struct ImageSize {
  Index height, width;
};

// Stride 1, zeros around the input. Stored is float or BFloat16; sums and transforms are in float. If the machine has
// instructions for products of bfloat16, transformed inputs are rounded to it, otherwise they are floats.
template <class Stored>
struct WinogradConvolution {
  Index channels;
  Index out_channels;
  Index tile;  // small_tile or large_tile
  // transformed weights [points][ceil(K / 16)][C][16]; of BFloat16 in pairs along C:
  // [points][ceil(K / 16)][ceil(C / 2)][16][2]
  const Stored* weight;
  const float* bias;  // [K rounded up to a multiple of 16]
  bool relu_input;
  bool relu_output;
};

// y = [relu](convolution([relu](x)) [+ residual]) for x [B, H, W, C], y and residual [B, H, W, K]; residual may be
// null, or y.
template <class Stored>
void winograd_convolution(const WinogradConvolution<Stored>& convolution, Index batch, ImageSize size, const Stored* x,
                          const Stored* residual, Stored* y, const Parallel& parallel);

// x += second(first(x)) for x [B, H, W, C]. The convolutions alternate strip by strip, so that only three strips of the
// image between them exist. A strip of the result overwrites the same strip of x, which by then is only the residual.
template <class Stored>
void winograd_residual_block(const WinogradConvolution<Stored>& first, const WinogradConvolution<Stored>& second,
                             Index batch, ImageSize size, Stored* x, const Parallel& parallel);

}  // namespace stm_fast
