// The row kernels of probabilities.h as operators. The schemas are in stm_fast/ops/probabilities.py.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "stm_fast/probabilities.h"
#include "tensors.h"

namespace {

using stm_fast::BFloat16;
using stm_fast::Crop;
using stm_fast::data_of;
using stm_fast::Half;
using stm_fast::Index;
using stm_fast::logits_stride;
using stm_fast::ObjectLogits;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr Index least_values = 1 << 16;  // results per thread that make waking it worthwhile

template <class Stored>
void fill_rows(const Tensor& tensor, const Crop& crop, float epsilon, float* probabilities) {
  const ObjectLogits<Stored> logits{static_cast<const Stored*>(tensor.const_data_ptr()),
                                    tensor.size(0),
                                    tensor.size(1),
                                    tensor.size(2),
                                    tensor.size(3),
                                    tensor.stride(0),
                                    tensor.stride(1),
                                    tensor.stride(2),
                                    tensor.stride(3)};
  const Index values_of_row = crop.width * (1 + logits.objects);
  torch::stable::parallel_for(
      0, crop.height, stm_fast::divide_up(least_values, values_of_row), [&](int64_t begin, int64_t end) {
        std::vector<float> buffer(stm_fast::probabilities_buffer(logits.objects, logits.width));
        for (Index row = begin; row < end; ++row) {
          stm_fast::object_probabilities(logits, crop, epsilon, row, buffer.data(), probabilities);
        }
      });
}

Tensor object_probabilities(const Tensor& logits, int64_t top, int64_t left, int64_t height, int64_t width,
                            double epsilon) {
  stm_fast::check_tensor("logits", logits, 4, logits.scalar_type());
  STD_TORCH_CHECK(logits.size(1) == 1 || logits.size(1) == 2, "logits: found ", logits.size(1),
                  " channels, expected 1 or 2");
  STD_TORCH_CHECK(top >= 0 && left >= 0 && height > 0 && width > 0 && top + height <= logits_stride * logits.size(2) &&
                      left + width <= logits_stride * logits.size(3),
                  "crop: outside of the resized logits");
  Tensor found = torch::stable::new_empty(logits, {1 + logits.size(0), height, width}, ScalarType::Float);
  const Crop crop{top, left, height, width};
  stm_fast::for_dtype<float, BFloat16, Half>("logits", logits, [&]<class Stored>(Stored) {
    fill_rows<Stored>(logits, crop, static_cast<float>(epsilon), data_of<float>(found));
  });
  return found;
}

Tensor most_likely(const Tensor& prob, const Tensor& ids) {
  stm_fast::check_tensor("prob", prob, 3, ScalarType::Float);
  stm_fast::check_tensor("ids", ids, 1, ScalarType::Byte);
  STD_TORCH_CHECK(prob.is_contiguous() && ids.is_contiguous(), "prob, ids: expected contiguous tensors");
  STD_TORCH_CHECK(prob.size(0) > 0 && prob.size(0) == ids.size(0), "ids: expected one for each channel");
  Tensor labels = torch::stable::new_empty(prob, {prob.size(1), prob.size(2)}, ScalarType::Byte);
  const Index pixels = labels.numel(), channels = prob.size(0);
  const auto* from = static_cast<const float*>(prob.const_data_ptr());
  const auto* names = static_cast<const std::uint8_t*>(ids.const_data_ptr());
  auto* to = data_of<std::uint8_t>(labels);
  torch::stable::parallel_for(
      0, pixels, stm_fast::divide_up(4 * least_values, channels),
      [&](int64_t begin, int64_t end) { stm_fast::most_likely(from, channels, pixels, names, begin, end, to); });
  return labels;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stm_fast, CPU, m) {
  m.impl("object_probabilities", TORCH_BOX(&object_probabilities));
  m.impl("most_likely", TORCH_BOX(&most_likely));
}
