// The convolutions of winograd.h as operators. The schemas are in stm_fast/network/deploy/winograd.py.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <type_traits>

#include "stm_fast/bottleneck_kernels.h"
#include "stm_fast/winograd.h"
#include "tensors.h"

namespace {

using stm_fast::BFloat16;
using stm_fast::check_dense;
using stm_fast::divide_up;
using stm_fast::Index;
using stm_fast::panel_lanes;
using stm_fast::ScalarType;
using stm_fast::Tensor;
using stm_fast::WinogradConvolution;

void check_image(const char* name, const Tensor& image) {
  const ScalarType type = image.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16, name, ": expected float32 or bfloat16");
  check_dense(name, image, 4, type);
}

// A weight [36, ceil(K / 16), C, 16], or in pairs [36, ceil(K / 16), ceil(C / 2), 16, 2], and its bias.
template <class Stored>
WinogradConvolution<Stored> convolution_of(const Tensor& weight, const Tensor& bias, Index channels,
                                           Index out_channels) {
  constexpr bool pairs = std::is_same_v<Stored, BFloat16>;
  check_dense("weight", weight, pairs ? 5 : 4, stm_fast::scalar_type<Stored>);
  check_dense("bias", bias, 1, ScalarType::Float);
  const Index panels = divide_up(out_channels, panel_lanes);
  STD_TORCH_CHECK(weight.size(0) == stm_fast::winograd_points && weight.size(1) == panels &&
                      weight.size(2) == (pairs ? divide_up(channels, 2) : channels) && weight.size(3) == panel_lanes &&
                      (!pairs || weight.size(4) == 2),
                  "weight: does not fit the images");
  STD_TORCH_CHECK(bias.size(0) == panels * panel_lanes, "bias: does not fit the images");
  return {.channels = channels,
          .out_channels = out_channels,
          .weight = static_cast<const Stored*>(weight.const_data_ptr()),
          .bias = static_cast<const float*>(bias.const_data_ptr()),
          .relu_input = false,
          .relu_output = false};
}

double products_of(const Tensor& image, Index other_channels) {
  constexpr double per_pixel = static_cast<double>(stm_fast::winograd_points) / 16;
  return per_pixel * static_cast<double>(image.numel()) * static_cast<double>(other_channels);
}

void winograd_convolution(Tensor out, const Tensor& x, const Tensor& weight, const Tensor& bias,
                          const std::optional<Tensor>& residual, bool relu_input, bool relu_output) {
  check_image("x", x);
  check_dense("out", out, 4, x.scalar_type());
  const Index channels = x.size(3), out_channels = out.size(3);
  for (Index i = 0; i < 3; ++i) {
    STD_TORCH_CHECK(out.size(i) == x.size(i), "out: does not fit x");
  }
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
  check_image("x", x);
  const Index channels = x.size(3);
  stm_fast::for_dtype<float, BFloat16>("x", x, [&]<class Stored>(Stored) {
    auto first = convolution_of<Stored>(weight1, bias1, channels, channels);
    first.relu_input = first.relu_output = true;
    const auto second = convolution_of<Stored>(weight2, bias2, channels, channels);
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
