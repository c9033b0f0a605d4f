// The convolutions of inverted_bottleneck.h as operators. The schemas are in stm_fast/network/deploy/bottlenecks.py.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "panels.h"
#include "stm_fast/inverted_bottleneck.h"

namespace {

using stm_fast::BFloat16;
using stm_fast::Bottleneck;
using stm_fast::Index;
using stm_fast::padded_of;
using stm_fast::panels_of;
using stm_fast::Tensor;
using stm_fast::Window;

// Images out [B, ceil(H / stride), ceil(W / stride), K] for x [B, H, W, C].
Window window_of(const Tensor& out, const Tensor& x, int64_t kernel, int64_t stride) {
  stm_fast::check_images(out, x);
  STD_TORCH_CHECK(kernel == 3 || kernel == 5, "kernel: found ", kernel, ", expected 3 or 5");
  STD_TORCH_CHECK(stride == 1 || stride == 2, "stride: found ", stride, ", expected 1 or 2");
  const Window window{kernel, stride, x.size(1), x.size(2)};
  stm_fast::check_sizes("out", out, {x.size(0), window.out_height(), window.out_width(), out.size(3)});
  return window;
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
  return {a.window,
          channels,
          expanded,
          out_channels,
          a.expand.has_value() ? panels_of<Stored>("expand", *a.expand, {}, expanded, channels) : nullptr,
          a.expand_bias.has_value() ? padded_of("expand_bias", *a.expand_bias, {expanded}) : nullptr,
          padded_of("depthwise", a.depthwise, {taps, expanded}),
          padded_of("depthwise_bias", a.depthwise_bias, {expanded}),
          panels_of<Stored>("project", a.project, {}, out_channels, expanded),
          padded_of("project_bias", a.project_bias, {out_channels})};
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
      window, channels, out_channels, panels_of<float>("weight", weight, {}, out_channels, kernel * kernel * channels),
      padded_of("bias", bias, {out_channels})};
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
