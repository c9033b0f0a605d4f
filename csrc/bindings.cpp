// stm_fast._C: importing it runs the static initializers that register the CPU kernels.
//
// The schemas are in stm_fast/ops/registration.py, shared by both engines. Only PyTorch's stable ABI and
// Python's limited API are used, so that one build serves every torch >= 2.11 and every Python >= 3.11. Tensors are
// converted to plain pointers and strides here; the engine in cpu/ does not depend on PyTorch.
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include <exception>
#include <optional>
#include <tuple>
#include <vector>

#include "stm_fast/tile_kernels.h"
#include "tensors.h"

namespace {

using stm_fast::accumulation_type;
using stm_fast::Accumulator;
using stm_fast::batch_of;
using stm_fast::check_same_shape;
using stm_fast::check_tensor;
using stm_fast::data_of;
using stm_fast::for_stored;
using stm_fast::parallel_read;
using stm_fast::Similarity;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The arguments common to the forward and the backward operator.
struct Arguments {
  const Tensor& query;
  const Tensor& key;
  const Tensor& value;
  const std::optional<Tensor>& shrinkage;
  const std::optional<Tensor>& selection;
  const std::optional<Tensor>& lengths;
  double scale;
  int64_t similarity;
  bool query_norm;
  int64_t top_k;
};

void check(const Arguments& a) {
  const ScalarType type = a.query.scalar_type();
  check_tensor("query", a.query, 3, type);
  check_tensor("key", a.key, 3, type);
  check_tensor("value", a.value, 3, type);
  stm_fast::check_read(a.query, a.key, a.value, a.lengths);
  const int64_t batch = a.value.size(0);
  STD_TORCH_CHECK(a.similarity >= 0 && a.similarity < static_cast<int64_t>(Similarity::count), "similarity: found ",
                  a.similarity);
  STD_TORCH_CHECK(
      a.similarity == static_cast<int64_t>(Similarity::l2) || !(a.shrinkage.has_value() || a.selection.has_value()),
      "shrinkage, selection: for l2 only");
  if (a.shrinkage.has_value()) {
    check_tensor("shrinkage", *a.shrinkage, 2, accumulation_type(type));
    STD_TORCH_CHECK(a.shrinkage->size(0) == batch || a.shrinkage->size(0) == 1,
                    "shrinkage: batch is neither 1 nor value's");
    STD_TORCH_CHECK(a.shrinkage->size(1) == a.key.size(1), "shrinkage: number of rows differs from key's");
  }
  if (a.selection.has_value()) {
    check_tensor("selection", *a.selection, 3, accumulation_type(type));
    check_same_shape("selection", *a.selection, "query", a.query);
  }
  STD_TORCH_CHECK(a.top_k >= 0, "top_k: found ", a.top_k, ", expected 0 or more");
}

template <class Stored>
stm_fast::ReadProblem<Stored> problem_of(const Arguments& a) {
  auto problem = stm_fast::read_problem<Stored>(a.query, a.key, a.value, a.lengths, a.scale);
  problem.similarity = static_cast<Similarity>(a.similarity);
  problem.query_norm = a.query_norm;
  problem.top_k = a.top_k;
  if (a.shrinkage.has_value()) {
    problem.shrinkage = batch_of<Accumulator<Stored>>(*a.shrinkage);
  }
  if (a.selection.has_value()) {
    problem.selection = batch_of<Accumulator<Stored>>(*a.selection);
  }
  return problem;
}

// An empty tensor, like `other`, for an absent input.
Tensor zeros_like(const std::optional<Tensor>& tensor, const Tensor& other) {
  return tensor.has_value() ? torch::stable::new_zeros(*tensor, tensor->sizes()) : torch::stable::new_empty(other, {0});
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> memory_read(
    const Tensor& query, const Tensor& key, const Tensor& value, const std::optional<Tensor>& shrinkage,
    const std::optional<Tensor>& selection, const std::optional<Tensor>& lengths, double scale, int64_t similarity,
    bool query_norm, int64_t top_k, bool return_usage, bool return_top_k) {
  const Arguments arguments{query, key, value, shrinkage, selection, lengths, scale, similarity, query_norm, top_k};
  check(arguments);
  STD_TORCH_CHECK(!return_top_k || (0 < top_k && top_k < key.size(1)), "return_top_k: expected 0 < top_k < N");
  const int64_t batch = value.size(0), queries = query.size(1);
  const ScalarType accumulation = accumulation_type(query.scalar_type());
  Tensor out = torch::stable::new_empty(value, {batch, queries, value.size(2)});
  Tensor lse = torch::stable::new_empty(value, {batch, queries}, accumulation);
  Tensor usage = return_usage ? torch::stable::new_empty(value, {batch, value.size(1)}, accumulation)
                              : torch::stable::new_empty(value, {0}, accumulation);
  const std::vector<int64_t> kept = return_top_k ? std::vector{batch, queries, top_k} : std::vector<int64_t>{0};
  Tensor weights = torch::stable::new_empty(value, kept, accumulation);
  Tensor rows = torch::stable::new_empty(value, kept, ScalarType::Long);
  for_stored("query", query, [&]<class Stored>(Stored) {
    using T = Accumulator<Stored>;
    stm_fast::ReadOutputs<Stored> outputs{data_of<Stored>(out), data_of<T>(lse)};
    if (return_usage) {
      outputs.usage = data_of<T>(usage);
    }
    if (return_top_k) {
      outputs.kept = {data_of<T>(weights), data_of<int64_t>(rows)};
    }
    stm_fast::memory_read(problem_of<Stored>(arguments), parallel_read(query, key, value), outputs);
  });
  return {out, lse, usage, weights, rows};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> memory_read_backward(
    const Tensor& grad_out, const Tensor& grad_lse, const Tensor& out, const Tensor& lse, const Tensor& query,
    const Tensor& key, const Tensor& value, const std::optional<Tensor>& shrinkage,
    const std::optional<Tensor>& selection, const std::optional<Tensor>& lengths, double scale, int64_t similarity,
    bool query_norm, int64_t top_k) {
  const Arguments arguments{query, key, value, shrinkage, selection, lengths, scale, similarity, query_norm, top_k};
  check(arguments);
  const ScalarType type = query.scalar_type(), accumulation = accumulation_type(type);
  const int64_t batch = value.size(0), queries = query.size(1);
  for (const auto& [name, tensor] : {std::pair("grad_out", &grad_out), std::pair("out", &out)}) {
    check_tensor(name, *tensor, 3, type);
    STD_TORCH_CHECK(tensor->size(0) == batch && tensor->size(1) == queries && tensor->size(2) == value.size(2), name,
                    ": expected the shape [B, M, Cv]");
  }
  for (const auto& [name, tensor] : {std::pair("grad_lse", &grad_lse), std::pair("lse", &lse)}) {
    check_tensor(name, *tensor, 2, accumulation);
    STD_TORCH_CHECK(tensor->size(0) == batch && tensor->size(1) == queries, name, ": expected the shape [B, M]");
  }
  Tensor grad_query = torch::stable::new_zeros(query, query.sizes());
  Tensor grad_key = torch::stable::new_zeros(key, key.sizes());
  Tensor grad_value = torch::stable::new_zeros(value, value.sizes());
  Tensor grad_shrinkage = zeros_like(shrinkage, query);
  Tensor grad_selection = zeros_like(selection, query);
  for_stored("query", query, [&]<class Stored>(Stored) {
    using T = Accumulator<Stored>;
    stm_fast::memory_read_backward(problem_of<Stored>(arguments), parallel_read(query, key, value),
                                   {.grad_out = batch_of<Stored>(grad_out),
                                    .grad_lse = batch_of<T>(grad_lse),
                                    .out = batch_of<Stored>(out),
                                    .lse = batch_of<T>(lse),
                                    .query = data_of<Stored>(grad_query),
                                    .key = data_of<Stored>(grad_key),
                                    .value = data_of<Stored>(grad_value),
                                    .shrinkage = shrinkage.has_value() ? data_of<T>(grad_shrinkage) : nullptr,
                                    .selection = selection.has_value() ? data_of<T>(grad_selection) : nullptr});
  });
  return {grad_query, grad_key, grad_value, grad_shrinkage, grad_selection};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stm_fast, CPU, m) {
  m.impl("memory_read_cpp", TORCH_BOX(&memory_read));
  m.impl("memory_read_cpp_backward", TORCH_BOX(&memory_read_backward));
}

namespace {

PyObject* instructions(PyObject*, PyObject*) {
  try {
    return PyUnicode_FromString(stm_fast::instructions());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

PyObject* convolves_bfloat16(PyObject*, PyObject*) {
  try {
    return PyBool_FromLong(stm_fast::convolves_bfloat16());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

PyMethodDef methods[] = {
    {"instructions", instructions, METH_NOARGS, "The instruction set whose tile kernels the engine uses."},
    {"convolves_bfloat16", convolves_bfloat16, METH_NOARGS,
     "Whether convolutions in bfloat16 are made by the extension."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
