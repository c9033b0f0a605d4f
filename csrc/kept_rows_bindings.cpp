// Reads by kept weights as operators; their schemas are in stm_fast/ops/kept_rows.py.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "stm_fast/kept_rows.h"
#include "tensors.h"

namespace {

using stm_fast::Accumulator;
using stm_fast::batch_of;
using stm_fast::check_tensor;
using stm_fast::data_of;
using stm_fast::for_stored;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check(const Tensor& weights, const Tensor& rows, const Tensor& value) {
  const ScalarType type = value.scalar_type();
  check_tensor("value", value, 3, type);
  check_tensor("weights", weights, 3, stm_fast::accumulation_type(type));
  check_tensor("rows", rows, 3, ScalarType::Long);
  STD_TORCH_CHECK(weights.size(0) == 1 || weights.size(0) == value.size(0), "weights: batch is neither 1 nor value's");
  stm_fast::check_same_shape("rows", rows, "weights", weights);
}

template <class Stored>
stm_fast::KeptProblem<Stored> problem_of(const Tensor& weights, const Tensor& rows, const Tensor& value) {
  return {.objects = value.size(0),
          .queries = weights.size(1),
          .kept = weights.size(2),
          .rows = value.size(1),
          .value_dim = value.size(2),
          .weights = batch_of<Accumulator<Stored>>(weights),
          .kept_rows = batch_of<int64_t>(rows),
          .value = batch_of<Stored>(value)};
}

stm_fast::Parallel parallel_of(const Tensor& weights, const Tensor& value) {
  return stm_fast::parallel_for_products(static_cast<double>(value.size(0)) * static_cast<double>(weights.size(1)) *
                                         static_cast<double>(weights.size(2)) * static_cast<double>(value.size(2)));
}

Tensor read_rows(const Tensor& weights, const Tensor& rows, const Tensor& value) {
  check(weights, rows, value);
  Tensor out = torch::stable::new_empty(value, {value.size(0), weights.size(1), value.size(2)});
  for_stored("value", value, [&]<class Stored>(Stored) {
    stm_fast::read_rows(problem_of<Stored>(weights, rows, value), parallel_of(weights, value), data_of<Stored>(out));
  });
  return out;
}

std::tuple<Tensor, Tensor> read_rows_backward(const Tensor& grad_out, const Tensor& weights, const Tensor& rows,
                                              const Tensor& value) {
  check(weights, rows, value);
  check_tensor("grad_out", grad_out, 3, value.scalar_type());
  STD_TORCH_CHECK(
      grad_out.size(0) == value.size(0) && grad_out.size(1) == weights.size(1) && grad_out.size(2) == value.size(2),
      "grad_out: expected the shape [B, M, Cv]");
  Tensor grad_weights = torch::stable::new_empty(weights, weights.sizes());
  Tensor grad_value = torch::stable::new_empty(value, value.sizes());
  for_stored("value", value, [&]<class Stored>(Stored) {
    stm_fast::read_rows_backward(problem_of<Stored>(weights, rows, value), parallel_of(weights, value),
                                 batch_of<Stored>(grad_out), data_of<Accumulator<Stored>>(grad_weights),
                                 data_of<Stored>(grad_value));
  });
  return {grad_weights, grad_value};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stm_fast, CPU, m) {
  m.impl("read_rows_cpp", TORCH_BOX(&read_rows));
  m.impl("read_rows_cpp_backward", TORCH_BOX(&read_rows_backward));
}
