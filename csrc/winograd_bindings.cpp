// The transforms of winograd.h as operators; the matrix products between them are PyTorch's.
// The schemas are in stm_fast/network/deploy/winograd.py.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "stm_fast/winograd.h"
#include "tensors.h"

namespace {

using stm_fast::Index;
using stm_fast::WinogradStrip;
using torch::stable::Tensor;

void check_float(const char* name, const Tensor& tensor, int64_t dimensions) {
  stm_fast::check_dense(name, tensor, dimensions, stm_fast::ScalarType::Float);
}

WinogradStrip strip_of(const Tensor& picture, int64_t first_row, int64_t rows) {
  const WinogradStrip strip{picture.size(0), picture.size(1), picture.size(2), first_row, rows};
  STD_TORCH_CHECK(strip.channels % stm_fast::winograd_lanes == 0, "channels: found ", strip.channels,
                  ", expected a multiple of ", stm_fast::winograd_lanes);
  STD_TORCH_CHECK(
      first_row >= 0 && rows > 0 && first_row + rows <= stm_fast::divide_up(strip.height, stm_fast::winograd_tile),
      "rows: outside of the picture");
  return strip;
}

Tensor winograd_input(const Tensor& picture, int64_t first_row, int64_t rows, bool relu) {
  check_float("picture", picture, 3);
  const WinogradStrip strip = strip_of(picture, first_row, rows);
  Tensor points =
      torch::stable::new_empty(picture, {stm_fast::winograd_points, rows * strip.tiles_across(), strip.channels});
  const auto* from = static_cast<const float*>(picture.const_data_ptr());
  auto* to = static_cast<float*>(points.mutable_data_ptr());
  torch::stable::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    for (Index row = begin; row < end; ++row) {
      stm_fast::winograd_input(strip, row, from, relu, to);
    }
  });
  return points;
}

void winograd_output(Tensor picture, const Tensor& points, const Tensor& bias, const std::optional<Tensor>& residual,
                     int64_t first_row, int64_t rows) {
  check_float("picture", picture, 3);
  check_float("points", points, 3);
  check_float("bias", bias, 1);
  const WinogradStrip strip = strip_of(picture, first_row, rows);
  STD_TORCH_CHECK(points.size(0) == stm_fast::winograd_points && points.size(1) == rows * strip.tiles_across() &&
                      points.size(2) == strip.channels && bias.size(0) == strip.channels,
                  "points, bias: do not fit the picture");
  const float* added = nullptr;
  if (residual.has_value()) {
    check_float("residual", *residual, 3);
    STD_TORCH_CHECK(residual->numel() == picture.numel(), "residual: does not fit the picture");
    added = static_cast<const float*>(residual->const_data_ptr());
  }
  const auto* from = static_cast<const float*>(points.const_data_ptr());
  const auto* shift = static_cast<const float*>(bias.const_data_ptr());
  auto* to = static_cast<float*>(picture.mutable_data_ptr());
  torch::stable::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    for (Index row = begin; row < end; ++row) {
      stm_fast::winograd_output(strip, row, from, shift, added, to);
    }
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stm_fast, CPU, m) {
  m.impl("winograd_input", TORCH_BOX(&winograd_input));
  m.impl("winograd_output", TORCH_BOX(&winograd_output));
}
