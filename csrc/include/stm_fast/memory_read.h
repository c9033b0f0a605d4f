// The memory read on plain pointers: out_i = sum_j softmax_j(S_ij) value_j, forward and backward.
//
// B objects, M queries, N memory rows, Ck key width, Cv value width. Stored is what the tensors hold (float, double,
// BFloat16); everything is accumulated in Accumulator<Stored>. The affinity is never made: queries are worked on in
// blocks that pass over the memory in blocks, with a running softmax.
#pragma once

#include <functional>

#include "stm_fast/matrix.h"
#include "stm_fast/number.h"

namespace stm_fast {

// How work is spread: `run(count, task)` calls task(0) ... task(count - 1), at most `threads` at a time. What is
// computed depends on `threads` alone, never on the schedule.
struct Parallel {
  Index threads;
  std::function<void(Index count, const std::function<void(Index)>& task)> run;
};

template <class Stored>
struct ReadProblem {
  Index objects;
  Index queries;
  Index rows;
  Index key_dim;
  Index value_dim;
  Batch<const Stored> query;              // [B, M, Ck]
  Batch<const Stored> key;                // [B, N, Ck]
  Batch<const Stored> value;              // [B, N, Cv]
  const std::int32_t* lengths = nullptr;  // [B], or null: every row counts
  Index lengths_stride = 0;
  Accumulator<Stored> scale;

  // Memory rows of an object that count.
  Index rows_of(Index object) const {
    if (lengths == nullptr) {
      return rows;
    }
    const Index length = lengths[object * lengths_stride];
    return length < 0 ? 0 : length > rows ? rows : length;
  }
};

// out [B, M, Cv] and lse [B, M] are contiguous.
template <class Stored>
void memory_read(const ReadProblem<Stored>& problem, const Parallel& parallel, Stored* out, Accumulator<Stored>* lse);

// The softmax of every query in two numbers, [B, M] each: a weight is exp(score - largest) * factor. Where no row
// counts they are +inf and 0. lse alone says the same, but rounded to its own size: too coarse for large scores.
template <class Stored>
void softmax_statistics(const ReadProblem<Stored>& problem, const Parallel& parallel, Accumulator<Stored>* largest,
                        Accumulator<Stored>* factor);

template <class Stored>
struct ReadGradients {
  Batch<const Stored> grad_out;               // [B, M, Cv]
  Batch<const Accumulator<Stored>> grad_lse;  // [B, M, 1]
  Batch<const Stored> out;                    // [B, M, Cv]
  // results, contiguous, of the shapes of the inputs; zero on entry
  Stored* query;
  Stored* key;
  Stored* value;
};

template <class Stored>
void memory_read_backward(const ReadProblem<Stored>& problem, const Parallel& parallel,
                          const ReadGradients<Stored>& gradients);

}  // namespace stm_fast
