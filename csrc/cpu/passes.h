// What the passes of the engine give one another.
#pragma once

#include "scores.h"
#include "stm_fast/scratch.h"

namespace stm_fast {

// The softmax of every query in two numbers, [B][padded queries] each: a weight is exp(score - largest) * factor. Where
// no row counts, and in the lanes beyond the queries, they are +inf and 0. lse and 1 say the same, but rounded to the
// size of lse: too coarse for large scores.
template <class T>
struct Statistics {
  T* largest;
  T* factor;
};

template <class Stored>
void softmax_statistics(const Scores<Stored>& scores, const Parallel& parallel,
                        const Statistics<Accumulator<Stored>>& statistics);

// usage [B, N]: the weights of every memory row, summed over the queries.
template <class Stored>
void memory_usage(const Scores<Stored>& scores, const Parallel& parallel, Accumulator<Stored>* usage);

// What a read writes, both or none: lse is null where it is not wanted.
template <class Stored>
struct ReadResults {
  Dense<Stored>* out = nullptr;        // [B, M, Cv]
  Accumulator<Stored>* lse = nullptr;  // [B, M]
};

// Finds the thresholds of a top-k read, and owns them; none where the read is dense. Where `lse` is wanted it reads as
// well: the values of the rows that it found, and no others.
template <class Stored>
class TopK {
 public:
  TopK(const ReadProblem<Stored>& problem, const Parallel& parallel, const ReadResults<Stored>& results = {});
  Thresholds<Accumulator<Stored>> thresholds() const { return thresholds_; }

 private:
  Scratch scratch_;
  Thresholds<Accumulator<Stored>> thresholds_;
};

}  // namespace stm_fast
