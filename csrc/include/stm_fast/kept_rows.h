// Reads by the kept weights of a top-k read: out_i = sum_k weight_ik value_row_ik, forward and backward.
//
// Rows outside of 0 .. N - 1 count for nothing.
#pragma once

#include <algorithm>

#include "stm_fast/memory_read.h"

namespace stm_fast {

template <class Stored>
struct KeptProblem {
  using T = Accumulator<Stored>;

  Index objects;
  Index queries;
  Index kept;  // k
  Index rows;
  Index value_dim;
  Batch<const T> weights;               // [B, M, k]
  Batch<const std::int64_t> kept_rows;  // [B, M, k]
  Batch<const Stored> value;            // [B, N, Cv]

  // One for all objects if they share the weights.
  Index weight_batches() const { return weights.shared ? std::min<Index>(1, objects) : objects; }
};

// out [B, M, Cv], contiguous.
template <class Stored>
void read_rows(const KeptProblem<Stored>& problem, const Parallel& parallel, Stored* out);

// From the gradient of out [B, M, Cv] those of weights and value, contiguous, with the shapes of both.
template <class Stored>
void read_rows_backward(const KeptProblem<Stored>& problem, const Parallel& parallel,
                        const Batch<const Stored>& grad_out, Accumulator<Stored>* grad_weights, Stored* grad_value);

}  // namespace stm_fast
