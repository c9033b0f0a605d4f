// The memory read on plain pointers: out_i = sum_j softmax_j(S_ij) value_j, forward and backward.
//
// B objects, M queries, N memory rows, Ck key width, Cv value width. Stored is the type of the tensors (float, double,
// BFloat16, Half; for a quantized memory Int8 or Float8, with queries and results in float); everything is accumulated
// in Accumulator<Stored>. The affinity is never materialized: blocks of queries pass over blocks of the memory, with a
// running softmax.
#pragma once

#include <cstdint>
#include <functional>

#include "stm_fast/matrix.h"
#include "stm_fast/number.h"

namespace stm_fast {

// How work is distributed: `run(count, task)` calls task(0) ... task(count - 1), at most `threads` at a time. Results
// depend on `threads` only, never on the schedule.
struct Parallel {
  Index threads;
  std::function<void(Index count, const std::function<void(Index)>& task)> run;
};

// The scales of a quantized memory, with slots of `slot_rows` rows, R; row j is in slot t = j / R.
//   key_j = key_scale_j * byte + key_mean_t      value_j = value_scale_t * byte
struct Quantization {
  Index slot_rows = 1;
  Batch<const float> key_scale;    // [Bk, N, 1]
  Batch<const float> key_mean;     // [Bk, N / R, Ck]
  Batch<const float> value_scale;  // [B, N / R, Cv]
  Index value_slot_stride = 0;     // between the first values of two slots; the strides of rows are within a slot
};

// How a query and a memory row are compared; the values are the indices of SIMILARITIES in stm_fast/choices.py.
//   dot   S_ij = scale * <q_i, k_j>
//   l2    S_ij = -scale * shrinkage_j * sum_c selection_ic (q_ic - k_jc)^2
enum class Similarity : std::int64_t { dot, l2, count };

template <class Stored>
struct ReadProblem {
  using T = Accumulator<Stored>;

  Index objects;
  Index queries;
  Index rows;
  Index key_dim;
  Index value_dim;
  Batch<const Dense<Stored>> query;  // [B, M, Ck]
  Batch<const Stored> key;           // [B, N, Ck]
  Batch<const Stored> value;         // [B, N, Cv]
  T scale;
  Similarity similarity = Similarity::dot;
  bool query_norm = true;                 // false leaves q^2 out of l2
  Batch<const T> shrinkage;               // [B, N, 1], or null: 1
  Batch<const T> selection;               // [B, M, Ck], or null: 1
  const std::int32_t* lengths = nullptr;  // [B], or null: every row is valid
  Index lengths_stride = 0;
  Index top_k = 0;                 // 0: dense
  Quantization quantization = {};  // of a quantized memory, with dot similarity

  // The number of valid memory rows of an object.
  Index rows_of(Index object) const {
    if (lengths == nullptr) {
      return rows;
    }
    const Index length = lengths[object * lengths_stride];
    return length < 0 ? 0 : length > rows ? rows : length;
  }
  // Whether the softmax is over fewer rows than there are.
  bool is_sparse() const { return 0 < top_k && top_k < rows; }
  Index query_batches() const { return query.shared ? 1 : objects; }  // of selection too
  Index key_batches() const { return key.shared ? 1 : objects; }      // of key_scale and key_mean too

  // Whether every object has the same scores.
  bool shares_affinity() const {
    bool shares = query.shared && key.shared && shrinkage.shared;
    for (Index object = 1; object < objects; ++object) {
      shares = shares && rows_of(object) == rows_of(0);
    }
    return shares;
  }
};

// The weights that a top-k read keeps and their memory rows, ascending by row; 0 and -1 where fewer rows count.
template <class T>
struct KeptRows {
  T* weights = nullptr;          // [B, M, k]
  std::int64_t* rows = nullptr;  // [B, M, k]
};

// The results of a read, contiguous. Null: not needed.
template <class Stored>
struct ReadOutputs {
  Dense<Stored>* out;                       // [B, M, Cv], needed
  Accumulator<Stored>* lse;                 // [B, M], needed
  Accumulator<Stored>* usage = nullptr;     // [B, N]
  KeptRows<Accumulator<Stored>> kept = {};  // only if 0 < top_k < N
};

template <class Stored>
void memory_read(const ReadProblem<Stored>& problem, const Parallel& parallel, const ReadOutputs<Stored>& outputs);

template <class Stored>
struct ReadGradients {
  using T = Accumulator<Stored>;

  Batch<const Stored> grad_out;  // [B, M, Cv]
  Batch<const T> grad_lse;       // [B, M, 1]
  Batch<const Stored> out;       // [B, M, Cv]
  Batch<const T> lse;            // [B, M, 1]
  // results, contiguous, with the shapes of the inputs; zero on entry; null if the input is
  Stored* query;
  Stored* key;
  Stored* value;
  T* shrinkage;
  T* selection;
};

template <class Stored>
void memory_read_backward(const ReadProblem<Stored>& problem, const Parallel& parallel,
                          const ReadGradients<Stored>& gradients);

}  // namespace stm_fast
