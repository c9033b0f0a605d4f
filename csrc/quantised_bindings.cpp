// The forward read of a quantized memory as an operator; its schema is in stm_fast/ops/quantised.py.
#include <torch/csrc/stable/library.h>

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
  check_tensor("value", a.value, 3, a.key.scalar_type());
  check_tensor("value_scale", a.value_scale, 3, ScalarType::Float);
  const int64_t batch = a.value.size(0), rows = a.key.size(1), slots = a.key_mean.size(1);
  STD_TORCH_CHECK(a.query.size(0) == batch || a.query.size(0) == 1, "query: batch is neither 1 nor value's");
  STD_TORCH_CHECK(a.key.size(0) == batch || a.key.size(0) == 1, "key: batch is neither 1 nor value's");
  STD_TORCH_CHECK(a.query.size(2) == a.key.size(2), "key: width differs from query's");
  STD_TORCH_CHECK(a.value.size(1) == rows, "value: number of rows differs from key's");
  STD_TORCH_CHECK(slots == 0 ? rows == 0 : rows % slots == 0, "key_mean: found ", slots, " slots for ", rows, " rows");
  STD_TORCH_CHECK(a.key_scale.size(0) == a.key.size(0) && a.key_scale.size(1) == rows, "key_scale: expected [Bk, N]");
  STD_TORCH_CHECK(a.key_mean.size(0) == a.key.size(0) && a.key_mean.size(2) == a.key.size(2),
                  "key_mean: expected [Bk, T, Ck]");
  STD_TORCH_CHECK(
      a.value_scale.size(0) == batch && a.value_scale.size(1) == slots && a.value_scale.size(2) == a.value.size(2),
      "value_scale: expected [B, T, Cv]");
  if (a.lengths.has_value()) {
    check_tensor("lengths", *a.lengths, 1, ScalarType::Int);
    STD_TORCH_CHECK(a.lengths->size(0) == batch, "lengths: expected one for each object");
  }
}

template <class Byte>
stm_fast::ReadProblem<Byte> problem_of(const Arguments& a) {
  stm_fast::ReadProblem<Byte> problem{
      .objects = a.value.size(0),
      .queries = a.query.size(1),
      .rows = a.value.size(1),
      .key_dim = a.query.size(2),
      .value_dim = a.value.size(2),
      .query = batch_of<float>(a.query),
      .key = batch_of<Byte>(a.key),
      .value = batch_of<Byte>(a.value),
      .scale = static_cast<float>(a.scale),
      .quantisation = {.slot_rows = a.value.size(1) / std::max<int64_t>(1, a.key_mean.size(1)),
                       .key_scale = batch_of<float>(a.key_scale),
                       .key_mean = batch_of<float>(a.key_mean),
                       .value_scale = batch_of<float>(a.value_scale)},
  };
  if (a.lengths.has_value()) {
    problem.lengths = static_cast<const std::int32_t*>(a.lengths->const_data_ptr());
    problem.lengths_stride = a.lengths->stride(0);
  }
  return problem;
}

std::tuple<Tensor, Tensor> memory_read_quantised(const Tensor& query, const Tensor& key, const Tensor& key_scale,
                                                 const Tensor& key_mean, const Tensor& value, const Tensor& value_scale,
                                                 const std::optional<Tensor>& lengths, double scale) {
  const Arguments arguments{query, key, key_scale, key_mean, value, value_scale, lengths, scale};
  check(arguments);
  Tensor out = torch::stable::new_empty(query, {value.size(0), query.size(1), value.size(2)});
  Tensor lse = torch::stable::new_empty(query, {value.size(0), query.size(1)});
  const auto read = [&]<class Byte>(Byte) {
    stm_fast::memory_read(problem_of<Byte>(arguments), stm_fast::parallel_read(query, key, value), data_of<float>(out),
                          data_of<float>(lse), nullptr);
  };
  switch (key.scalar_type()) {
    case ScalarType::Char:
      read(stm_fast::Int8{});
      break;
    case ScalarType::Float8_e4m3fn:
      read(stm_fast::Float8{});
      break;
    default:
      STD_TORCH_CHECK(false, "key: expected int8 or float8_e4m3fn");
  }
  return {out, lse};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stm_fast, CPU, m) { m.impl("memory_read_quantised_cpp", TORCH_BOX(&memory_read_quantised)); }
