// The forward read: blocks of queries pass over blocks of memory rows with a running softmax (the loop order of
// FlashAttention-2, Dao 2023, algorithm 1, with queries in SIMD lanes). Where queries are few the memory is shared out
// between threads, and the parts are joined exactly.
#include <cmath>
#include <limits>

#include "pass.h"
#include "passes.h"

namespace stm_fast {

namespace {

// What is written; null where it is not wanted.
template <class Stored>
struct Results {
  using T = Accumulator<Stored>;
  Dense<Stored>* out = nullptr;  // [B, M, Cv]
  T* lse = nullptr;              // [B, M]
  Statistics<T> statistics = {};
};

// Element: what is multiplied.
template <class Stored, class Element>
class ForwardPass {
  using T = Accumulator<Stored>;

 public:
  ForwardPass(const Scores<Stored, Element>& scores, Index value_dim, const Results<Stored>& results)
      : scores_(scores),
        problem_(scores.problem),
        kernels_(scores.kernels),
        blocks_(scores.blocks),
        value_dim_(value_dim),
        padded_value_dim_(round_up(value_dim, kernels_.group_rows)),
        results_(results) {}

  // What one thread needs.
  struct Workspace {
    Workspace(const ForwardPass& pass, Carver& carver) {
      const Index queries = pass.blocks_.largest_block() * pass.blocks_.lanes;
      const Index rows = round_up(rows_per_block, pass.kernels_.group_rows);
      query = carver.take<Element>(queries * pass.scores_.depth);
      keys = carver.take<Element>(rows * pass.scores_.depth);
      values = carver.take<Element>(pass.padded_value_dim_ * depth_of<Element>(rows_per_block));
      scores = carver.take<T>(rows * pass.blocks_.lanes);
      rescale = carver.take<T>(pass.blocks_.lanes);
      room = carver.take<T>(std::max(queries, rows_per_block) * pass.scores_.features.dim());
    }
    Element* query;   // [panels][features][lanes]
    Element* keys;    // [row groups][features][group_rows]
    Element* values;  // [channel groups][rows][group_rows]
    T* scores;        // [rows][lanes]
    T* rescale;       // [lanes]
    T* room;          // for features that are not yet packed
  };

  // What a block of queries has read so far, by panel.
  struct Partial {
    Partial(const ForwardPass& pass, Carver& carver) {
      const Index queries = pass.blocks_.largest_block() * pass.blocks_.lanes;
      sums = carver.take<T>(queries * pass.padded_value_dim_);
      largest = carver.take<T>(queries);
      total = carver.take<T>(queries);
    }
    T* sums;     // [panels][value_dim padded][lanes], relative to `largest`
    T* largest;  // [panels][lanes]
    T* total;    // [panels][lanes]
  };

  void read(const Segment& segment, const Workspace& work, const Partial& result) const {
    const Index first = blocks_.first_panel(segment.query_block), panels = blocks_.panels_in(segment.query_block);
    scores_.features.pack_queries(segment.object, first * blocks_.lanes, blocks_.queries_in_block(segment.query_block),
                                  blocks_.lanes, work.room, work.query);
    std::fill_n(result.sums, panels * padded_value_dim_ * blocks_.lanes, T(0));
    std::fill_n(result.largest, panels * blocks_.lanes, -std::numeric_limits<T>::infinity());
    std::fill_n(result.total, panels * blocks_.lanes, T(0));

    const Index end = std::min(problem_.rows_of(segment.object), segment.end * rows_per_block);
    for (Index row = segment.begin * rows_per_block; row < end; row += rows_per_block) {
      const Index rows = std::min(rows_per_block, end - row);
      scores_.features.pack_keys(segment.object, row, rows, kernels_.group_rows, work.room, work.keys);
      pack_values(segment.object, row, rows, work.values);
      for (Index panel = 0; panel < panels; ++panel) {
        const Element* query = work.query + panel * scores_.depth * blocks_.lanes;
        scores_.tile(segment.object, first + panel, row, rows, work.keys, query, work.scores, blocks_.lanes);
        read_tile(work, rows, panel, result);
      }
    }
  }

  // whole += part, both relative to their own largest score.
  void add(const Segment& segment, const Partial& part, const Partial& whole) const {
    const Index lanes = blocks_.lanes;
    for (Index i = 0; i < blocks_.panels_in(segment.query_block) * lanes; ++i) {
      const T largest = std::max(whole.largest[i], part.largest[i]);
      const T shift = largest == -std::numeric_limits<T>::infinity() ? T(0) : largest;
      const T old_scale = std::exp(whole.largest[i] - shift), new_scale = std::exp(part.largest[i] - shift);
      whole.largest[i] = largest;
      whole.total[i] = old_scale * whole.total[i] + new_scale * part.total[i];
      const Index first = i / lanes * padded_value_dim_ * lanes + i % lanes;
      for (Index c = 0; c < value_dim_; ++c) {
        const Index at = first + c * lanes;
        whole.sums[at] = old_scale * whole.sums[at] + new_scale * part.sums[at];
      }
    }
  }

  void write(const Segment& segment, const Partial& result) const {
    const Index first = blocks_.first_panel(segment.query_block);
    for (Index panel = 0; panel < blocks_.panels_in(segment.query_block); ++panel) {
      for (Index i = 0; i < blocks_.queries_in_panel(first + panel); ++i) {
        const Index query = (first + panel) * blocks_.lanes + i, at = panel * blocks_.lanes + i;
        write_query(segment.object, query, result.largest[at], result.total[at],
                    result.sums + panel * padded_value_dim_ * blocks_.lanes + i);
      }
    }
  }

 private:
  // Channels side by side, [channel groups][rows][group_rows].
  void pack_values(Index object, Index row, Index rows, Element* panels) const {
    const Matrix<const Stored> channels = problem_.value[object].from_row(row).transposed();
    pack_panels(channels, value_dim_, rows, kernels_.group_rows, panels);
    if constexpr (quantised<Stored>) {
      dequantise_values(problem_, object, row, rows, value_dim_, kernels_.group_rows, panels);
    }
  }

  // Scores [rows, lanes] become weights, and the values are added with them.
  void read_tile(const Workspace& work, Index rows, Index panel, const Partial& result) const {
    const Index lanes = blocks_.lanes;
    T* sums = result.sums + panel * padded_value_dim_ * lanes;
    kernels_.softmax_step(work.scores, rows, lanes,
                          {result.largest + panel * lanes, result.total + panel * lanes, work.rescale});
    const auto* const weights = reinterpret_cast<const Element*>(work.scores);
    kernels_.rescale_and_add_product(
        {padded_value_dim_, depth_of<Element>(rows), work.values, 0, weights, lanes, sums, lanes}, work.rescale);
  }

  // A query that nothing counts for has a total of 0.
  void write_query(Index object, Index query, T largest, T total, const T* sums) const {
    const bool empty = total == T(0);
    const T factor = empty ? T(0) : T(1) / total;
    if (results_.statistics.factor != nullptr) {
      const Index at = object * blocks_.padded_queries() + query;
      results_.statistics.largest[at] = empty ? std::numeric_limits<T>::infinity() : largest;
      results_.statistics.factor[at] = factor;
      return;
    }
    const Index at = object * blocks_.queries + query;
    results_.lse[at] = largest + std::log(total);
    for (Index c = 0; c < value_dim_; ++c) {
      results_.out[at * value_dim_ + c] = narrow<Dense<Stored>>(sums[c * blocks_.lanes] * factor);
    }
  }

  const Scores<Stored, Element>& scores_;
  const ReadProblem<Stored>& problem_;
  const ForwardKernels<Element>& kernels_;
  const QueryBlocks& blocks_;
  Index value_dim_;
  Index padded_value_dim_;
  Results<Stored> results_;
};

template <class Stored, class Element>
void run_forward(const Scores<Stored, Element>& scores, const Parallel& parallel, Index value_dim,
                 const Results<Stored>& results) {
  const Schedule schedule = schedule_of(scores.problem, scores.blocks.count, rows_per_block, parallel.threads);
  run_pass(ForwardPass<Stored, Element>(scores, value_dim, results), schedule, parallel);
}

// Whether numbers are multiplied as they are stored. Features of l2 would lose accuracy, and the scores of a top-k read
// are those of its thresholds, to the bit.
template <class Stored>
bool multiplies_pairs(const ReadProblem<Stored>& problem) {
  return std::is_same_v<Stored, BFloat16> && pair_kernels() != nullptr && !problem.l2 && problem.top_k == 0;
}

}  // namespace

template <class Stored>
void memory_read(const ReadProblem<Stored>& problem, const Parallel& parallel, Dense<Stored>* out,
                 Accumulator<Stored>* lse, Accumulator<Stored>* usage) {
  const TopK<Stored> top_k(problem, parallel);
  const Scores<Stored> scores(problem, top_k.thresholds());
  const Results<Stored> results{.out = out, .lse = lse};
  if (multiplies_pairs(problem)) {
    if constexpr (std::is_same_v<Stored, BFloat16>) {
      run_forward(Scores<Stored, BFloat16Pair>(problem), parallel, problem.value_dim, results);
    }
  } else {
    run_forward(scores, parallel, problem.value_dim, results);
  }
  if (usage != nullptr) {
    memory_usage(scores, parallel, usage);
  }
}

template <class Stored>
void softmax_statistics(const Scores<Stored>& scores, const Parallel& parallel,
                        const Statistics<Accumulator<Stored>>& statistics) {
  using T = Accumulator<Stored>;
  const Index count = scores.problem.objects * scores.blocks.padded_queries();
  std::fill_n(statistics.largest, count, std::numeric_limits<T>::infinity());
  std::fill_n(statistics.factor, count, T(0));
  run_forward(scores, parallel, 0, Results<Stored>{.statistics = statistics});
}

#define STM_FAST_INSTANTIATE(Stored)                                                                           \
  template void memory_read(const ReadProblem<Stored>&, const Parallel&, Dense<Stored>*, Accumulator<Stored>*, \
                            Accumulator<Stored>*);                                                             \
  template void softmax_statistics(const Scores<Stored>&, const Parallel&, const Statistics<Accumulator<Stored>>&);
STM_FAST_INSTANTIATE(float)
STM_FAST_INSTANTIATE(double)
STM_FAST_INSTANTIATE(BFloat16)
STM_FAST_INSTANTIATE(Half)
STM_FAST_INSTANTIATE(Int8)
STM_FAST_INSTANTIATE(Float8)

}  // namespace stm_fast
