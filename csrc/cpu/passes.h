// Data shared between the passes of the engine.
#pragma once

#include <atomic>

#include "scores.h"
#include "stm_fast/scratch.h"

namespace stm_fast {

// The softmax of every query in two numbers, [B][padded queries] each: a weight is exp(score - largest) * factor.
// Without valid rows, and in lanes without a query, they are +inf and 0. lse and 1 would be equivalent, but rounded to
// the magnitude of lse: too coarse for large scores.
template <class T>
struct Statistics {
  T* largest;
  T* factor;
};

template <class Stored>
void softmax_statistics(const Scores<Stored>& scores, const Parallel& parallel,
                        const Statistics<Accumulator<Stored>>& statistics);

// usage [B, N]: the weights of every memory row, summed over the queries; of a dense read, from its lse [B, M], or from
// the kept rows of a top-k read.
template <class Stored>
void memory_usage(const ReadProblem<Stored>& problem, const Parallel& parallel, const Accumulator<Stored>* lse,
                  const KeptRows<Accumulator<Stored>>& kept, Accumulator<Stored>* usage);

// The results of a read.
template <class Stored>
struct ReadResults {
  Dense<Stored>* out = nullptr;        // [B, M, Cv]
  Accumulator<Stored>* lse = nullptr;  // [B, M]
};

// The read of a quantized memory from products of its numbers as they are stored, without dequantizing them;
// `overflowed` is set if a result is not finite. Only if multiplies_quantized(): the instruction set has such products,
// and slots have enough rows.
template <class Stored>
bool multiplies_quantized(const ReadProblem<Stored>& problem);
template <class Stored>
void read_quantized(const ReadProblem<Stored>& problem, const Parallel& parallel, const ReadResults<Stored>& results,
                    std::atomic<bool>& overflowed);

// Finds the thresholds of a top-k read, and owns them; none if the read is dense. Fills `kept` if it is needed, and
// then lse [B, M] too.
template <class Stored>
class TopK {
 public:
  TopK(const ReadProblem<Stored>& problem, const Parallel& parallel, const KeptRows<Accumulator<Stored>>& kept = {},
       Accumulator<Stored>* lse = nullptr);
  Thresholds<Accumulator<Stored>> thresholds() const { return thresholds_; }

 private:
  Scratch scratch_;
  Thresholds<Accumulator<Stored>> thresholds_;
};

}  // namespace stm_fast
