// Checks of the tensors that the network's operators share: images, and weights as stm_fast/network/deploy/panels.py
// packs them.
#pragma once

#include <string>
#include <type_traits>
#include <vector>

#include "stm_fast/bottleneck_kernels.h"
#include "tensors.h"

namespace stm_fast {

inline std::string text_of(const std::vector<Index>& sizes) {
  std::string text;
  for (const Index size : sizes) {
    text += (text.empty() ? "[" : ", ") + std::to_string(size);
  }
  return text + "]";
}

inline void check_sizes(const char* name, const Tensor& tensor, const std::vector<Index>& expected) {
  std::vector<Index> found;
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    found.push_back(tensor.size(i));
  }
  STD_TORCH_CHECK(found == expected, name, ": found ", text_of(found), ", expected ", text_of(expected));
}

// Images [B, H, W, C], float32 or bfloat16, and results of the same dtype.
inline void check_images(const Tensor& out, const Tensor& x) {
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16, "x: expected float32 or bfloat16");
  check_dense("x", x, 4, type);
  check_dense("out", out, 4, type);
}

// Floats [..., count rounded up to a whole panel].
inline const float* padded_of(const char* name, const Tensor& tensor, std::vector<Index> sizes) {
  sizes.back() = round_up(sizes.back(), panel_lanes);
  check_dense(name, tensor, std::ssize(sizes), ScalarType::Float);
  check_sizes(name, tensor, sizes);
  return static_cast<const float*>(tensor.const_data_ptr());
}

// Weights [..., ceil(columns / 16), depth, 16], or in pairs along the depth [..., ceil(depth / 2), 16, 2].
template <class Stored>
const Stored* panels_of(const char* name, const Tensor& tensor, std::vector<Index> sizes, Index columns, Index depth) {
  constexpr bool pairs = std::is_same_v<Stored, BFloat16>;
  sizes.insert(sizes.end(), {divide_up(columns, panel_lanes), pairs ? divide_up(depth, 2) : depth, panel_lanes});
  if (pairs) {
    sizes.push_back(2);
  }
  check_dense(name, tensor, std::ssize(sizes), scalar_type<Stored>);
  check_sizes(name, tensor, sizes);
  return static_cast<const Stored*>(tensor.const_data_ptr());
}

}  // namespace stm_fast
