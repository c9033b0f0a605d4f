// The usage of the memory rows: a second pass, because a weight is known only after its query has read every row.
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

}  // namespace

template <class Stored>
void memory_usage(const Scores<Stored>& scores, const Parallel& parallel, Accumulator<Stored>* usage) {
  using T = Accumulator<Stored>;
  const ReadProblem<Stored>& problem = scores.problem;
  const SoftmaxWeights<Stored> weights(scores, parallel);
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

template void memory_usage(const Scores<float>&, const Parallel&, float*);
template void memory_usage(const Scores<double>&, const Parallel&, double*);
template void memory_usage(const Scores<BFloat16>&, const Parallel&, float*);
template void memory_usage(const Scores<Half>&, const Parallel&, float*);
template void memory_usage(const Scores<Int8>&, const Parallel&, float*);
template void memory_usage(const Scores<Float8>&, const Parallel&, float*);

}  // namespace stm_fast
