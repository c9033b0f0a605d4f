// The convolution of convolution.h as an operator. The schema is in stm_fast/network/deploy/convolutions.py.
#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <type_traits>

#include "stm_fast/convolution.h"
#include "stm_fast/convolution_kernels.h"
#include "stm_fast/tile_kernels.h"
#include "tensors.h"

namespace {

using stm_fast::BFloat16;
using stm_fast::check_dense;
using stm_fast::Convolution;
using stm_fast::divide_up;
using stm_fast::Index;
using stm_fast::panel_lanes;
using stm_fast::ScalarType;
using stm_fast::Tensor;

struct Arguments {
  Tensor out;
  const Tensor& x;
  const Tensor& weight;
  const Tensor& bias;
  int64_t kernel, stride;
  bool add, relu;
};

// A weight [ceil(K / 16), depth, 16], or in pairs [ceil(K / 16), depth / 2, 16, 2], and its bias.
template <class Stored>
Convolution<Stored> convolution_of(const Arguments& a) {
  constexpr bool pairs = std::is_same_v<Stored, BFloat16>;
  const Index channels = a.x.size(3), out_channels = a.out.size(3), depth = a.kernel * a.kernel * channels;
  const Index panels = divide_up(out_channels, panel_lanes);
  check_dense("weight", a.weight, pairs ? 4 : 3, stm_fast::scalar_type<Stored>);
  check_dense("bias", a.bias, 1, ScalarType::Float);
  STD_TORCH_CHECK(a.weight.size(0) == panels && a.weight.size(1) == (pairs ? depth / 2 : depth) &&
                      a.weight.size(2) == panel_lanes && (!pairs || a.weight.size(3) == 2),
                  "weight: does not fit the images");
  STD_TORCH_CHECK(a.bias.size(0) == panels * panel_lanes, "bias: does not fit the images");
  const Convolution<Stored> convolution{.kernel = a.kernel,
                                        .stride = a.stride,
                                        .batch = a.x.size(0),
                                        .height = a.x.size(1),
                                        .width = a.x.size(2),
                                        .channels = channels,
                                        .out_channels = out_channels,
                                        .weight = static_cast<const Stored*>(a.weight.const_data_ptr()),
                                        .bias = static_cast<const float*>(a.bias.const_data_ptr()),
                                        .add = a.add,
                                        .relu = a.relu};
  STD_TORCH_CHECK(a.out.size(0) == convolution.batch && a.out.size(1) == convolution.out_height() &&
                      a.out.size(2) == convolution.out_width(),
                  "out: does not fit x");
  return convolution;
}

// Pairs of channels are read in place.
void check_pairs(const Tensor& x) {
  STD_TORCH_CHECK(stm_fast::convolution_pair_kernels() != nullptr,
                  "x: found bfloat16, expected float32 with the instruction set ", stm_fast::instructions());
  STD_TORCH_CHECK(x.size(3) % 2 == 0, "x: found ", x.size(3), " channels of bfloat16, expected an even number");
  STD_TORCH_CHECK(reinterpret_cast<std::uintptr_t>(x.const_data_ptr()) % sizeof(stm_fast::BFloat16Pair) == 0,
                  "x: found an odd address, expected whole pairs of bfloat16 numbers");
}

void convolution(Tensor out, const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t kernel, int64_t stride,
                 bool add, bool relu) {
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16, "x: expected float32 or bfloat16");
  check_dense("x", x, 4, type);
  check_dense("out", out, 4, type);
  STD_TORCH_CHECK(kernel > 0 && kernel <= stm_fast::most_window_rows, "kernel: found ", kernel, ", expected 1 to ",
                  stm_fast::most_window_rows);
  STD_TORCH_CHECK(stride > 0, "stride: found ", stride, ", expected a positive number");
  if (type == ScalarType::BFloat16) {
    check_pairs(x);
  }
  Arguments arguments{out, x, weight, bias, kernel, stride, add, relu};
  stm_fast::for_dtype<float, BFloat16>("x", x, [&]<class Stored>(Stored) {
    const Convolution<Stored> found = convolution_of<Stored>(arguments);
    if (out.numel() > 0) {
      const double products = static_cast<double>(out.numel()) * static_cast<double>(kernel * kernel * x.size(3));
      stm_fast::convolve(found, static_cast<const Stored*>(x.const_data_ptr()), stm_fast::data_of<Stored>(out),
                         stm_fast::parallel_for_products(products));
    }
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stm_fast, CPU, m) { m.impl("convolution", TORCH_BOX(&convolution)); }
