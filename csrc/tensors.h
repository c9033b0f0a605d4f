// Tensors as plain pointers and strides, and PyTorch's threads for the engine; shared by all bindings.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "stm_fast/memory_read.h"

namespace stm_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_tensor(const char* name, const Tensor& tensor, int64_t dimensions, ScalarType type) {
  STD_TORCH_CHECK(tensor.is_cpu(), name, ": expected a cpu tensor");
  STD_TORCH_CHECK(tensor.dim() == dimensions, name, ": found ", tensor.dim(), " dimensions, expected ", dimensions);
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, ": its dtype is not the one that the other tensors ask for");
}

template <class Element>
inline Batch<const Element> batch_of(const Tensor& tensor) {
  const bool shared = tensor.size(0) == 1;
  return {static_cast<const Element*>(tensor.const_data_ptr()), shared ? 0 : tensor.stride(0), tensor.stride(1),
          tensor.dim() == 3 ? tensor.stride(2) : 1, shared};
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
                               static_cast<double>(key.size(1)) * static_cast<double>(key.size(2) + value.size(2)));
}

template <class Element>
inline Element* data_of(Tensor& tensor) {
  return static_cast<Element*>(tensor.mutable_data_ptr());
}

}  // namespace stm_fast
