// The convolutions of winograd.h as operators. The schemas are in stm_fast/network/deploy/winograd.py.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "panels.h"
#include "stm_fast/winograd.h"

namespace {

using stm_fast::BFloat16;
using stm_fast::check_dense;
using stm_fast::Index;
using stm_fast::points_of_tile;
using stm_fast::Tensor;
using stm_fast::WinogradConvolution;

// Weights [points, ceil(K / 16), C, 16], or in pairs; their number of points tells the tiles that they are for.
template <class Stored>
WinogradConvolution<Stored> convolution_of(const Tensor& weight, const Tensor& bias, Index channels,
                                           Index out_channels) {
  const bool large =
      std::is_same_v<Stored, float> && weight.dim() > 0 && weight.size(0) == points_of_tile(stm_fast::large_tile);
  const Index tile = large ? stm_fast::large_tile : stm_fast::small_tile;
  return {.channels = channels,
          .out_channels = out_channels,
          .tile = tile,
          .weight = stm_fast::panels_of<Stored>("weight", weight, {points_of_tile(tile)}, out_channels, channels),
          .bias = stm_fast::padded_of("bias", bias, {out_channels}),
          .relu_input = false,
          .relu_output = false};
}

double products_of(const Tensor& image, Index other_channels) {
  constexpr double per_pixel = static_cast<double>(points_of_tile(stm_fast::small_tile)) / 16;
  return per_pixel * static_cast<double>(image.numel()) * static_cast<double>(other_channels);
}

void winograd_convolution(Tensor out, const Tensor& x, const Tensor& weight, const Tensor& bias,
                          const std::optional<Tensor>& residual, bool relu_input, bool relu_output) {
  stm_fast::check_images(out, x);
  const Index channels = x.size(3), out_channels = out.size(3);
  stm_fast::check_sizes("out", out, {x.size(0), x.size(1), x.size(2), out_channels});
  stm_fast::check_other_data(out, x);
  if (residual.has_value()) {
    check_dense("residual", *residual, 4, x.scalar_type());
    stm_fast::check_same_shape("residual", *residual, "out", out);
  }
  stm_fast::for_dtype<float, BFloat16>("x", x, [&]<class Stored>(Stored) {
    auto convolution = convolution_of<Stored>(weight, bias, channels, out_channels);
    convolution.relu_input = relu_input;
    convolution.relu_output = relu_output;
    const auto* const added = residual.has_value() ? static_cast<const Stored*>(residual->const_data_ptr()) : nullptr;
    if (out.numel() > 0) {
      stm_fast::winograd_convolution(
          convolution, x.size(0), {x.size(1), x.size(2)}, static_cast<const Stored*>(x.const_data_ptr()), added,
          stm_fast::data_of<Stored>(out), stm_fast::parallel_for_products(products_of(x, out_channels)));
    }
  });
}

void winograd_residual_block(Tensor x, const Tensor& weight1, const Tensor& bias1, const Tensor& weight2,
                             const Tensor& bias2) {
  stm_fast::check_images(x, x);
  const Index channels = x.size(3);
  stm_fast::for_dtype<float, BFloat16>("x", x, [&]<class Stored>(Stored) {
    auto first = convolution_of<Stored>(weight1, bias1, channels, channels);
    first.relu_input = first.relu_output = true;
    const auto second = convolution_of<Stored>(weight2, bias2, channels, channels);
    STD_TORCH_CHECK(first.tile == second.tile, "weight2: found other tiles than those of weight1");
    if (x.numel() > 0) {
      stm_fast::winograd_residual_block(first, second, x.size(0), {x.size(1), x.size(2)}, stm_fast::data_of<Stored>(x),
                                        stm_fast::parallel_for_products(products_of(x, channels)));
    }
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stm_fast, CPU, m) {
  m.impl("winograd_convolution", TORCH_BOX(&winograd_convolution));
  m.impl("winograd_residual_block", TORCH_BOX(&winograd_residual_block));
}
