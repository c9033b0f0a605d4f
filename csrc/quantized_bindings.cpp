// The forward read of a quantized memory as an operator; its schema is in stm_fast/ops/quantized.py.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "tensors.h"

namespace {

using stm_fast::batch_of;
using stm_fast::check_tensor;
using stm_fast::data_of;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Arguments {
  const Tensor& query;
  const Tensor& key;
  const Tensor& key_scale;
  const Tensor& key_mean;
  const Tensor& value;
  const Tensor& value_scale;
  const std::optional<Tensor>& lengths;
  double scale;
};

void check(const Arguments& a) {
  check_tensor("query", a.query, 3, ScalarType::Float);
  check_tensor("key", a.key, 3, a.key.scalar_type());
  check_tensor("key_scale", a.key_scale, 2, ScalarType::Float);
  check_tensor("key_mean", a.key_mean, 3, ScalarType::Float);
  check_tensor("value", a.value, 4, a.key.scalar_type());
  check_tensor("value_scale", a.value_scale, 3, ScalarType::Float);
  stm_fast::check_read(a.query, a.key, a.value, a.lengths);
  const int64_t batch = a.value.size(0), rows = a.key.size(1), slots = a.value.size(1);
  STD_TORCH_CHECK(a.key_mean.size(1) == slots, "key_mean: expected [Bk, T, Ck]");
  STD_TORCH_CHECK(a.key_scale.size(0) == a.key.size(0) && a.key_scale.size(1) == rows, "key_scale: expected [Bk, N]");
  STD_TORCH_CHECK(a.key_mean.size(0) == a.key.size(0) && a.key_mean.size(2) == a.key.size(2),
                  "key_mean: expected [Bk, T, Ck]");
  STD_TORCH_CHECK(
      a.value_scale.size(0) == batch && a.value_scale.size(1) == slots && a.value_scale.size(2) == a.value.size(3),
      "value_scale: expected [B, T, Cv]");
}

template <class Byte>
stm_fast::ReadProblem<Byte> problem_of(const Arguments& a) {
  auto problem = stm_fast::read_problem<Byte>(a.query, a.key, a.value, a.lengths, a.scale);
  problem.quantization = {.slot_rows = std::max<int64_t>(1, a.value.size(2)),
                          .key_scale = batch_of<float>(a.key_scale),
                          .key_mean = batch_of<float>(a.key_mean),
                          .value_scale = batch_of<float>(a.value_scale),
                          .value_slot_stride = a.value.stride(1)};
  return problem;
}

std::tuple<Tensor, Tensor> memory_read_quantized(const Tensor& query, const Tensor& key, const Tensor& key_scale,
                                                 const Tensor& key_mean, const Tensor& value, const Tensor& value_scale,
                                                 const std::optional<Tensor>& lengths, double scale) {
  const Arguments arguments{query, key, key_scale, key_mean, value, value_scale, lengths, scale};
  check(arguments);
  Tensor out = torch::stable::new_empty(query, {value.size(0), query.size(1), value.size(3)});
  Tensor lse = torch::stable::new_empty(query, {value.size(0), query.size(1)});
  stm_fast::for_dtype<stm_fast::Int8, stm_fast::Float8>("key", key, [&]<class Byte>(Byte) {
    stm_fast::memory_read(problem_of<Byte>(arguments), stm_fast::parallel_read(query, key, value),
                          {data_of<float>(out), data_of<float>(lse)});
  });
  return {out, lse};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stm_fast, CPU, m) { m.impl("memory_read_quantized_cpp", TORCH_BOX(&memory_read_quantized)); }
