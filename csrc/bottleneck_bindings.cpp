// The convolutions of inverted_bottleneck.h as operators. The schemas are in stm_fast/network/deploy/bottlenecks.py.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <type_traits>

#include "stm_fast/bottleneck_kernels.h"
#include "stm_fast/inverted_bottleneck.h"
#include "tensors.h"

namespace {

using stm_fast::BFloat16;
using stm_fast::Bottleneck;
using stm_fast::check_dense;
using stm_fast::divide_up;
using stm_fast::Index;
using stm_fast::panel_lanes;
using stm_fast::ScalarType;
using stm_fast::Tensor;
using stm_fast::Window;

// Images out [B, ceil(H / stride), ceil(W / stride), K] for x [B, H, W, C].
Window window_of(const Tensor& out, const Tensor& x, int64_t kernel, int64_t stride) {
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16, "x: expected float32 or bfloat16");
  check_dense("x", x, 4, type);
  check_dense("out", out, 4, type);
  STD_TORCH_CHECK(kernel == 3 || kernel == 5, "kernel: found ", kernel, ", expected 3 or 5");
  STD_TORCH_CHECK(stride == 1 || stride == 2, "stride: found ", stride, ", expected 1 or 2");
  const Window window{kernel, stride, x.size(1), x.size(2)};
  STD_TORCH_CHECK(out.size(0) == x.size(0) && out.size(1) == window.out_height() && out.size(2) == window.out_width(),
                  "out: does not fit x");
  return window;
}

// Floats padded to a whole panel.
const float* padded(const char* name, const Tensor& tensor, int64_t dimensions, Index count) {
  check_dense(name, tensor, dimensions, ScalarType::Float);
  STD_TORCH_CHECK(tensor.size(dimensions - 1) == stm_fast::round_up(count, panel_lanes), name,
                  ": does not fit the other tensors");
  return static_cast<const float*>(tensor.const_data_ptr());
}

// A weight in panels [ceil(columns / 16), depth, 16], or in pairs along the depth [..., ceil(depth / 2), 16, 2].
template <class Stored>
const Stored* panels(const char* name, const Tensor& tensor, Index columns, Index depth) {
  constexpr bool pairs = std::is_same_v<Stored, BFloat16>;
  check_dense(name, tensor, pairs ? 4 : 3, pairs ? ScalarType::BFloat16 : ScalarType::Float);
  STD_TORCH_CHECK(tensor.size(0) == divide_up(columns, panel_lanes) && tensor.size(2) == panel_lanes &&
                      tensor.size(1) == (pairs ? divide_up(depth, 2) : depth) && (!pairs || tensor.size(3) == 2),
                  name, ": does not fit the other tensors");
  return static_cast<const Stored*>(tensor.const_data_ptr());
}

struct Arguments {
  Tensor out;
  const Tensor& x;
  const std::optional<Tensor>& expand;
  const std::optional<Tensor>& expand_bias;
  const Tensor& depthwise;
  const Tensor& depthwise_bias;
  const Tensor& project;
  const Tensor& project_bias;
  Window window;
  Index expanded;
  bool residual;
};

template <class Stored>
Bottleneck<Stored> bottleneck_of(const Arguments& a) {
  const Index channels = a.x.size(3), out_channels = a.out.size(3), expanded = a.expanded;
  STD_TORCH_CHECK(a.expand.has_value() == a.expand_bias.has_value(), "expand: has no bias");
  STD_TORCH_CHECK(expanded > 0 && (a.expand.has_value() || expanded == channels), "expanded: does not fit x");
  STD_TORCH_CHECK(!a.residual || (a.window.stride == 1 && channels == out_channels), "residual: x does not fit out");
  const Index taps = a.window.kernel * a.window.kernel;
  const float* const depthwise = padded("depthwise", a.depthwise, 2, expanded);
  STD_TORCH_CHECK(a.depthwise.size(0) == taps, "depthwise: does not fit the kernel");
  return {a.window,
          channels,
          expanded,
          out_channels,
          a.expand.has_value() ? panels<Stored>("expand", *a.expand, expanded, channels) : nullptr,
          a.expand_bias.has_value() ? padded("expand_bias", *a.expand_bias, 1, expanded) : nullptr,
          depthwise,
          padded("depthwise_bias", a.depthwise_bias, 1, expanded),
          panels<Stored>("project", a.project, out_channels, expanded),
          padded("project_bias", a.project_bias, 1, out_channels)};
}

template <class Stored>
void run(Arguments& a) {
  const Bottleneck<Stored> bottleneck = bottleneck_of<Stored>(a);
  const auto* const x = static_cast<const Stored*>(a.x.const_data_ptr());
  const double products = static_cast<double>(a.x.numel() + a.out.numel()) * static_cast<double>(a.expanded);
  stm_fast::inverted_bottleneck(bottleneck, a.x.size(0), x, a.residual ? x : nullptr, stm_fast::data_of<Stored>(a.out),
                                stm_fast::parallel_for_products(products));
}

void inverted_bottleneck(Tensor out, const Tensor& x, const std::optional<Tensor>& expand,
                         const std::optional<Tensor>& expand_bias, const Tensor& depthwise,
                         const Tensor& depthwise_bias, const Tensor& project, const Tensor& project_bias,
                         int64_t expanded, int64_t kernel, int64_t stride, bool residual) {
  const Window window = window_of(out, x, kernel, stride);
  Arguments a{out,          x,      expand,   expand_bias, depthwise, depthwise_bias, project,
              project_bias, window, expanded, residual};
  if (out.numel() == 0) {
    return;
  }
  stm_fast::for_dtype<float, BFloat16>("x", x, [&]<class Stored>(Stored) { run<Stored>(a); });
}

void convolution_relu6(Tensor out, const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t kernel,
                       int64_t stride) {
  const Window window = window_of(out, x, kernel, stride);
  const Index channels = x.size(3), out_channels = out.size(3);
  const stm_fast::FirstConvolution convolution{
      window, channels, out_channels, panels<float>("weight", weight, out_channels, kernel * kernel * channels),
      padded("bias", bias, 1, out_channels)};
  if (out.numel() == 0) {
    return;
  }
  const auto parallel = stm_fast::parallel_for_products(static_cast<double>(out.numel()) *
                                                        static_cast<double>(kernel * kernel * channels));
  stm_fast::for_dtype<float, BFloat16>("x", x, [&]<class Stored>(Stored) {
    stm_fast::first_convolution(convolution, x.size(0), static_cast<const Stored*>(x.const_data_ptr()),
                                stm_fast::data_of<Stored>(out), parallel);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stm_fast, CPU, m) {
  m.impl("inverted_bottleneck", TORCH_BOX(&inverted_bottleneck));
  m.impl("convolution_relu6", TORCH_BOX(&convolution_relu6));
}
