// The usage of the memory rows. For a dense read it is a second pass, because a weight is known only after its query
// has read every row. Objects with a shared affinity have the same usage, which is computed once.
#include "softmax_weights.h"

namespace stm_fast {

namespace {

template <class Stored>
struct UsageWorkspace {
  using T = Accumulator<Stored>;
  UsageWorkspace(const Scores<Stored>& scores, Carver& carver) {
    const Index rows = round_up(rows_per_block, scores.kernels.group_rows);
    keys = carver.take<T>(rows * scores.features.dim());
    buffer = carver.take<T>(rows * scores.features.dim());
    weights = carver.take<T>(rows * scores.blocks.lanes);
    sums = carver.take<T>(rows * scores.blocks.lanes);
  }
  T* keys;     // [row groups][features][group_rows]
  T* buffer;   // for features before packing
  T* weights;  // [rows][lanes]
  T* sums;     // [rows][lanes]: the weights of all panels
};

template <class Stored>
void usage_of_scores(const Scores<Stored>& scores, const Parallel& parallel, const Accumulator<Stored>* lse,
                     Accumulator<Stored>* usage) {
  using T = Accumulator<Stored>;
  const ReadProblem<Stored>& problem = scores.problem;
  const SoftmaxWeights<Stored> weights(scores, parallel, {lse, problem.queries, 1, 1, false});
  const Index row_blocks = divide_up(problem.rows, rows_per_block), lanes = scores.blocks.lanes;
  std::fill_n(usage, problem.objects * problem.rows, T(0));
  const auto add_block = [&](Index item, const UsageWorkspace<Stored>& work) {
    const Index object = item / row_blocks, row = item % row_blocks * rows_per_block;
    const Index rows = std::min(rows_per_block, problem.rows_of(object) - row);
    if (rows <= 0) {
      return;
    }
    scores.features.pack_keys(object, row, rows, scores.kernels.group_rows, work.buffer, work.keys);
    std::fill_n(work.sums, rows * lanes, T(0));
    for (Index panel = 0; panel < scores.blocks.panels; ++panel) {
      weights.tile(object, panel, row, rows, work.keys, work.weights, lanes);
      for (Index i = 0; i < rows * lanes; ++i) {
        work.sums[i] += work.weights[i];
      }
    }
    for (Index j = 0; j < rows; ++j) {
      T* total = usage + object * problem.rows + row + j;
      for (Index i = 0; i < lanes; ++i) {
        *total += work.sums[j * lanes + i];
      }
    }
  };
  run_items<UsageWorkspace<Stored>>(scores, problem.objects * row_blocks, parallel, add_block);
}

// In the order of the queries.
template <class T>
void usage_of_kept(const KeptRows<T>& kept, Index entries, Index rows, T* usage) {
  std::fill_n(usage, rows, T(0));
  for (Index entry = 0; entry < entries; ++entry) {
    if (kept.rows[entry] >= 0) {
      usage[kept.rows[entry]] += kept.weights[entry];
    }
  }
}

}  // namespace

template <class Stored>
void memory_usage(const ReadProblem<Stored>& problem, const Parallel& parallel, const Accumulator<Stored>* lse,
                  const KeptRows<Accumulator<Stored>>& kept, Accumulator<Stored>* usage) {
  ReadProblem<Stored> different = problem;
  if (problem.shares_affinity()) {
    different.objects = std::min<Index>(1, problem.objects);
  }
  if (problem.is_sparse()) {
    const Index entries = problem.queries * problem.top_k;
    parallel.run(different.objects, [&](Index object) {
      usage_of_kept<Accumulator<Stored>>({kept.weights + object * entries, kept.rows + object * entries}, entries,
                                         problem.rows, usage + object * problem.rows);
    });
  } else {
    usage_of_scores(Scores<Stored>(different), parallel, lse, usage);
  }
  for (Index object = different.objects; object < problem.objects; ++object) {
    std::copy_n(usage, problem.rows, usage + object * problem.rows);
  }
}

#define STM_FAST_INSTANTIATE(Stored)                                                                  \
  template void memory_usage(const ReadProblem<Stored>&, const Parallel&, const Accumulator<Stored>*, \
                             const KeptRows<Accumulator<Stored>>&, Accumulator<Stored>*);
STM_FAST_INSTANTIATE(float)
STM_FAST_INSTANTIATE(double)
STM_FAST_INSTANTIATE(BFloat16)
STM_FAST_INSTANTIATE(Half)
STM_FAST_INSTANTIATE(Int8)
STM_FAST_INSTANTIATE(Float8)

}  // namespace stm_fast
