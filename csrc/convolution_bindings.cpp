// The convolutions of convolution.h as operators. The schemas are in stm_fast/network/deploy/convolutions.py.
#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <optional>

#include "panels.h"
#include "stm_fast/convolution.h"
#include "stm_fast/convolution_kernels.h"
#include "stm_fast/tile_kernels.h"

namespace {

using stm_fast::BFloat16;
using stm_fast::check_dense;
using stm_fast::Convolution;
using stm_fast::divide_up;
using stm_fast::Index;
using stm_fast::ScalarType;
using stm_fast::Tensor;

// Pairs of channels are read in place.
void check_readable(const Tensor& out, const Tensor& x) {
  stm_fast::check_images(out, x);
  stm_fast::check_other_data(out, x);
  if (x.scalar_type() == ScalarType::Float) {
    return;
  }
  STD_TORCH_CHECK(stm_fast::convolution_pair_kernels() != nullptr,
                  "x: found bfloat16, expected float32 with the instruction set ", stm_fast::instructions());
  STD_TORCH_CHECK(x.size(3) % 2 == 0, "x: found ", x.size(3), " channels of bfloat16, expected an even number");
  STD_TORCH_CHECK(reinterpret_cast<std::uintptr_t>(x.const_data_ptr()) % sizeof(stm_fast::BFloat16Pair) == 0,
                  "x: found an odd address, expected whole pairs of bfloat16 numbers");
}

void check_size(const char* name, const Tensor& images, Index batch, Index height, Index width) {
  STD_TORCH_CHECK(images.size(0) == batch && images.size(1) == height && images.size(2) == width, name, ": found ",
                  images.size(0), " images of ", images.size(1), " x ", images.size(2), ", expected ", batch, " of ",
                  height, " x ", width);
}

template <class Stored>
const Stored* numbers_of(const Tensor& tensor) {
  return static_cast<const Stored*>(tensor.const_data_ptr());
}

// Whose results have the channels of `out`.
template <class Stored>
Convolution<Stored> convolution_of(const Tensor& out, const Tensor& x, const Tensor& weight, const Tensor& bias,
                                   int64_t kernel, int64_t stride) {
  STD_TORCH_CHECK(kernel > 0 && kernel <= stm_fast::most_window_rows, "kernel: found ", kernel, ", expected 1 to ",
                  stm_fast::most_window_rows);
  STD_TORCH_CHECK(stride > 0, "stride: found ", stride, ", expected a positive number");
  return {.kernel = kernel,
          .stride = stride,
          .batch = x.size(0),
          .height = x.size(1),
          .width = x.size(2),
          .channels = x.size(3),
          .out_channels = out.size(3),
          .weight = stm_fast::panels_of<Stored>("weight", weight, {}, out.size(3), kernel * kernel * x.size(3)),
          .bias = stm_fast::padded_of("bias", bias, {out.size(3)}),
          .add = false,
          .relu = false};
}

template <class Stored>
stm_fast::Parallel parallel_of(const Convolution<Stored>& convolution) {
  return stm_fast::parallel_for_products(
      static_cast<double>(convolution.batch * convolution.out_height() * convolution.out_width()) *
      static_cast<double>(convolution.out_channels * convolution.kernel * convolution.kernel * convolution.channels));
}

void convolution(Tensor out, const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t kernel, int64_t stride,
                 bool add, bool relu) {
  check_readable(out, x);
  stm_fast::for_dtype<float, BFloat16>("x", x, [&]<class Stored>(Stored) {
    Convolution<Stored> found = convolution_of<Stored>(out, x, weight, bias, kernel, stride);
    check_size("out", out, found.batch, found.out_height(), found.out_width());
    found.add = add;
    found.relu = relu;
    if (out.numel() > 0) {
      stm_fast::convolve(found, numbers_of<Stored>(x), stm_fast::data_of<Stored>(out), parallel_of(found));
    }
  });
}

void convolution_pool(Tensor out, const Tensor& x, const Tensor& weight, const Tensor& bias,
                      const std::optional<Tensor>& added, int64_t kernel, int64_t stride) {
  check_readable(out, x);
  stm_fast::for_dtype<float, BFloat16>("x", x, [&]<class Stored>(Stored) {
    const Convolution<Stored> found = convolution_of<Stored>(out, x, weight, bias, kernel, stride);
    const Index height = found.out_height(), width = found.out_width();
    check_size("out", out, found.batch, divide_up(height, Index{2}), divide_up(width, Index{2}));
    const bool shared = added.has_value() && added->size(0) == 1;
    if (added.has_value()) {
      check_dense("added", *added, 4, x.scalar_type());
      check_size("added", *added, shared ? 1 : found.batch, height, width);
      STD_TORCH_CHECK(added->size(3) == found.out_channels, "added: found ", added->size(3), " channels, expected ",
                      found.out_channels);
    }
    if (out.numel() > 0) {
      stm_fast::convolve_and_pool(found, numbers_of<Stored>(x),
                                  added.has_value() ? numbers_of<Stored>(*added) : nullptr, shared,
                                  stm_fast::data_of<Stored>(out), parallel_of(found));
    }
  });
}

void narrow_convolution(Tensor out, const Tensor& x, const Tensor& weight, const Tensor& bias, bool relu) {
  check_readable(out, x);
  check_size("out", out, x.size(0), x.size(1), x.size(2));
  const Index columns = 9 * out.size(3);
  stm_fast::for_dtype<float, BFloat16>("x", x, [&]<class Stored>(Stored) {
    const stm_fast::NarrowConvolution<Stored> found{
        .batch = x.size(0),
        .height = x.size(1),
        .width = x.size(2),
        .channels = x.size(3),
        .out_channels = out.size(3),
        .weight = stm_fast::panels_of<Stored>("weight", weight, {}, columns, x.size(3)),
        .bias = stm_fast::padded_of("bias", bias, {out.size(3)}),
        .relu = relu};
    if (out.numel() > 0) {
      const double products = static_cast<double>(x.numel()) * static_cast<double>(columns);
      stm_fast::convolve_narrow(found, numbers_of<Stored>(x), stm_fast::data_of<Stored>(out),
                                stm_fast::parallel_for_products(products));
    }
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stm_fast, CPU, m) {
  m.impl("convolution", TORCH_BOX(&convolution));
  m.impl("convolution_pool", TORCH_BOX(&convolution_pool));
  m.impl("narrow_convolution", TORCH_BOX(&narrow_convolution));
}
