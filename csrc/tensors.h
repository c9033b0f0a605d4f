// Tensors as plain pointers and strides, and PyTorch's threads for the engine; shared by all bindings.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "stm_fast/memory_read.h"

namespace stm_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The dtype of tensors of T.
template <class T>
inline constexpr ScalarType scalar_type = ScalarType::Float;
template <>
inline constexpr ScalarType scalar_type<double> = ScalarType::Double;
template <>
inline constexpr ScalarType scalar_type<BFloat16> = ScalarType::BFloat16;
template <>
inline constexpr ScalarType scalar_type<Half> = ScalarType::Half;
template <>
inline constexpr ScalarType scalar_type<Int8> = ScalarType::Char;
template <>
inline constexpr ScalarType scalar_type<Float8> = ScalarType::Float8_e4m3fn;

// Calls function(T{}) for the T of Types whose dtype the tensor has.
template <class... Types, class Function>
void for_dtype(const char* name, const Tensor& tensor, const Function& function) {
  const ScalarType type = tensor.scalar_type();
  const bool known = ((type == scalar_type<Types> && (function(Types{}), true)) || ...);
  STD_TORCH_CHECK(known, name, ": there is no kernel for its dtype");
}

// Calls function(Stored{}) for the dtype of a tensor of the memory read.
template <class Function>
void for_stored(const char* name, const Tensor& tensor, const Function& function) {
  for_dtype<float, double, BFloat16, Half>(name, tensor, function);
}

inline ScalarType accumulation_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_tensor(const char* name, const Tensor& tensor, int64_t dimensions, ScalarType type) {
  STD_TORCH_CHECK(tensor.is_cpu(), name, ": expected a cpu tensor");
  STD_TORCH_CHECK(tensor.dim() == dimensions, name, ": found ", tensor.dim(), " dimensions, expected ", dimensions);
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, ": its dtype does not match the other tensors");
}

inline void check_dense(const char* name, const Tensor& tensor, int64_t dimensions, ScalarType type) {
  check_tensor(name, tensor, dimensions, type);
  STD_TORCH_CHECK(tensor.is_contiguous(), name, ": expected a contiguous tensor");
}

// An operator that reads neighbors cannot write over its input.
inline void check_other_data(const Tensor& out, const Tensor& x) {
  STD_TORCH_CHECK(out.numel() == 0 || out.const_data_ptr() != x.const_data_ptr(), "out: found the data of x");
}

inline void check_same_shape(const char* name, const Tensor& tensor, const char* other_name, const Tensor& other) {
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    STD_TORCH_CHECK(tensor.size(i) == other.size(i), name, ": its shape differs from that of ", other_name);
  }
}

// Of [B, N], [B, N, C], or of the first slot of [B, T, R, C].
template <class Element>
inline Batch<const Element> batch_of(const Tensor& tensor) {
  const bool shared = tensor.size(0) == 1;
  const int64_t last = tensor.dim() - 1;
  return {static_cast<const Element*>(tensor.const_data_ptr()), shared ? 0 : tensor.stride(0),
          tensor.stride(last == 1 ? 1 : last - 1), last == 1 ? 1 : tensor.stride(last), shared};
}

// The checks and fields that all reads have in common: query [B or 1, M, Ck], key [B or 1, N, Ck], value [B, N, Cv] or
// [B, T, R, Cv] with N = T R, and lengths [B].
inline void check_read(const Tensor& query, const Tensor& key, const Tensor& value,
                       const std::optional<Tensor>& lengths) {
  const int64_t batch = value.size(0);
  STD_TORCH_CHECK(query.size(0) == batch || query.size(0) == 1, "query: batch is neither 1 nor value's");
  STD_TORCH_CHECK(key.size(0) == batch || key.size(0) == 1, "key: batch is neither 1 nor value's");
  const int64_t rows = value.size(1) * (value.dim() == 4 ? value.size(2) : 1);
  STD_TORCH_CHECK(key.size(1) == rows, "value: number of rows differs from key's");
  STD_TORCH_CHECK(key.size(2) == query.size(2), "key: width differs from query's");
  if (lengths.has_value()) {
    check_tensor("lengths", *lengths, 1, ScalarType::Int);
    STD_TORCH_CHECK(lengths->size(0) == batch, "lengths: expected one for each object");
  }
}

template <class Stored>
ReadProblem<Stored> read_problem(const Tensor& query, const Tensor& key, const Tensor& value,
                                 const std::optional<Tensor>& lengths, double scale) {
  ReadProblem<Stored> problem{
      .objects = value.size(0),
      .queries = query.size(1),
      .rows = key.size(1),
      .key_dim = query.size(2),
      .value_dim = value.size(value.dim() - 1),
      .query = batch_of<Dense<Stored>>(query),
      .key = batch_of<Stored>(key),
      .value = batch_of<Stored>(value),
      .scale = static_cast<Accumulator<Stored>>(scale),
  };
  if (lengths.has_value()) {
    problem.lengths = static_cast<const std::int32_t*>(lengths->const_data_ptr());
    problem.lengths_stride = lengths->stride(0);
  }
  return problem;
}

// As many threads as PyTorch may use, but none whose work would cost less than waking it.
inline Parallel parallel_for_products(double products) {
  constexpr double least_products = 1e6;
  const Index most = torch::stable::get_num_threads();
  const Index threads = products >= least_products * most ? most : 1 + static_cast<Index>(products / least_products);
  return {threads, [threads](Index count, const std::function<void(Index)>& task) {
            const auto run = [&](int64_t begin, int64_t end) {
              for (Index i = begin; i < end; ++i) {
                task(i);
              }
            };
            if (threads == 1) {
              run(0, count);
            } else {
              torch::stable::parallel_for(0, count, divide_up(count, threads), run);
            }
          }};
}

inline Parallel parallel_read(const Tensor& query, const Tensor& key, const Tensor& value) {
  return parallel_for_products(static_cast<double>(value.size(0)) * static_cast<double>(query.size(1)) *
                               static_cast<double>(key.size(1)) *
                               static_cast<double>(key.size(2) + value.size(value.dim() - 1)));
}

template <class Element>
inline Element* data_of(Tensor& tensor) {
  return static_cast<Element*>(tensor.mutable_data_ptr());
}

}  // namespace stm_fast
