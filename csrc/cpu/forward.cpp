// The forward read: blocks of queries pass over blocks of memory rows with a running softmax (the loop order of
// FlashAttention-2, Dao 2023, algorithm 1, with queries in SIMD lanes). With few queries the memory is distributed
// over threads, and the parts are merged exactly.
#include <atomic>
#include <cmath>
#include <limits>

#include "few_queries.h"
#include "panel_sums.h"
#include "passes.h"
#include "stm_fast/kept_rows.h"

namespace stm_fast {

namespace {

// The results that a pass writes.
template <class Stored>
struct Results : ReadResults<Stored> {
  using T = Accumulator<Stored>;
  Statistics<T> statistics = {};
  std::atomic<bool>* overflowed = nullptr;  // set if a result is not finite
  T value_unit = 1;                         // if not 1, only results that were not finite are written, in this unit
};

// Element: the type that is multiplied.
template <class Stored, class Element>
class ForwardPass : public PanelSums<Accumulator<Stored>> {
  using T = Accumulator<Stored>;
  using Base = PanelSums<T>;
  using Base::blocks_, Base::affinities_, Base::value_dim_, Base::padded_value_dim_;

 public:
  using typename Base::Partial;

  ForwardPass(const Scores<Stored, Element>& scores, const Affinities& affinities, const QueryBlocks& blocks,
              Index value_dim, const Results<Stored>& results)
      : Base(affinities, blocks, value_dim, scores.kernels.group_rows),
        scores_(scores),
        problem_(scores.problem),
        kernels_(scores.kernels),
        results_(results) {}

  // The workspace of one thread.
  struct Workspace {
    Workspace(const ForwardPass& pass, Carver& carver) {
      const Index queries = pass.block_queries();
      const Index rows = round_up(rows_per_block, pass.kernels_.group_rows);
      query = carver.take<Element>(queries * pass.scores_.depth);
      keys = carver.take<Element>(rows * pass.scores_.depth);
      values = carver.take<Element>(pass.padded_value_dim_ * depth_of<Element>(rows_per_block));
      tile_size = rows * pass.blocks_.lanes;
      tiles = pass.affinities_.most_objects() > 1 ? pass.blocks_.largest_block() : 1;
      scores = carver.take<T>(tiles * tile_size);
      rescale = carver.take<T>(tiles * pass.blocks_.lanes);
      buffer = carver.take<T>(std::max(queries, rows_per_block) * pass.scores_.features.dim());
      means = carver.take<T>(pass.means_size());
    }
    Element* query;   // [panels][features][lanes]
    Element* keys;    // [row groups][features][group_rows]
    Element* values;  // [channel groups][rows][group_rows]
    T* scores;        // [tiles][rows][lanes]
    T* rescale;       // [tiles][lanes]
    T* buffer;        // for features before packing
    T* means;         // scratch of for_means
    Index tiles;      // one per panel if several objects use them, otherwise one
    Index tile_size;
  };

  void read(const Segment& segment, const Workspace& work, const Partial& result) const {
    const Index object = affinities_.first_object(segment.affinity), objects = affinities_.objects_of(segment.affinity);
    const Index first = blocks_.first_panel(segment.query_block), panels = blocks_.panels_in(segment.query_block);
    scores_.features.pack_queries(object, first * blocks_.lanes, blocks_.queries_in_block(segment.query_block),
                                  blocks_.lanes, work.buffer, work.query);
    this->clear(segment, result);

    const Index end = std::min(problem_.rows_of(object), segment.end * rows_per_block);
    for (Index row = segment.begin * rows_per_block; row < end; row += rows_per_block) {
      const Index rows = std::min(rows_per_block, end - row);
      scores_.features.pack_keys(object, row, rows, kernels_.group_rows, work.buffer, work.keys);
      arrange(kernels_, work.keys, rows, scores_.depth);
      for (Index other = 0; other < objects; ++other) {
        pack_values(object + other, row, rows, work.values);
        for (Index panel = 0; panel < panels; ++panel) {
          const Index tile = panel % work.tiles;
          if (other == 0) {
            const Element* query = work.query + panel * scores_.depth * blocks_.lanes;
            scores_.tile(object, first + panel, row, rows, work.keys, query, work.scores + tile * work.tile_size,
                         blocks_.lanes);
            make_weights(work, rows, panel, tile, result);
          }
          add_values(work, rows, tile, this->sums_of(result, other, panel));
        }
      }
    }
  }

  void write(const Segment& segment, const Workspace& work, const Partial& result) const {
    this->for_means(segment, result, work.means, [&](Index object, Index query, T largest, T total, const T* means) {
      finish(object, query, largest, total, means);
    });
  }

 private:
  // Contiguous channels, [channel groups][rows][group_rows].
  void pack_values(Index object, Index row, Index rows, Element* panels) const {
    if constexpr (quantized<Stored>) {
      pack_dequantized_values(problem_, object, row, rows, value_dim_, kernels_.group_rows, panels);
    } else {
      const Matrix<const Stored> channels = problem_.value[object].from_row(row).transposed();
      pack_panels(channels, value_dim_, rows, kernels_.group_rows, panels);
    }
    if constexpr (std::is_same_v<Element, T>) {
      if (results_.value_unit != T(1)) {
        std::transform(panels, panels + padded_value_dim_ * rows, panels,
                       [this](T x) { return x * results_.value_unit; });
      }
    }
    arrange(kernels_, panels, value_dim_, depth_of<Element>(rows));
  }

  // Turns scores [rows, lanes] of a tile into weights.
  void make_weights(const Workspace& work, Index rows, Index panel, Index tile, const Partial& result) const {
    const Index lanes = blocks_.lanes;
    kernels_.softmax_step(work.scores + tile * work.tile_size, rows, lanes,
                          {result.largest + panel * lanes, result.total + panel * lanes, work.rescale + tile * lanes});
  }

  // Adds the packed values, weighted by a tile, to the sums of a panel.
  void add_values(const Workspace& work, Index rows, Index tile, T* sums) const {
    const Index lanes = blocks_.lanes;
    const auto* const weights = reinterpret_cast<const Element*>(work.scores + tile * work.tile_size);
    kernels_.rescale_and_add_product(
        {padded_value_dim_, depth_of<Element>(rows), work.values, 0, weights, lanes, sums, lanes},
        work.rescale + tile * lanes);
  }

  void finish(Index object, Index query, T largest, T total, const T* means) const {
    if (results_.statistics.factor != nullptr) {
      const Index at = object * blocks_.padded_queries() + query;
      results_.statistics.largest[at] = total == T(0) ? std::numeric_limits<T>::infinity() : largest;
      results_.statistics.factor[at] = mean_factor(total);
      return;
    }
    const Index at = object * blocks_.queries + query;
    if (results_.value_unit != T(1)) {
      if (!std::isfinite(results_.lse[at])) {
        results_.lse[at] = log_sum(largest, total);
      }
      return write_overflowed(means, results_.out + at * value_dim_);
    }
    write_query<Stored>(results_, at, value_dim_, largest, total, means, *results_.overflowed);
  }

  void write_overflowed(const T* means, Dense<Stored>* out) const {
    for (Index c = 0; c < value_dim_; ++c) {
      if (!std::isfinite(widen(out[c]))) {
        out[c] = narrow<Dense<Stored>>(means[c] / results_.value_unit);
      }
    }
  }

  const Scores<Stored, Element>& scores_;
  const ReadProblem<Stored>& problem_;
  const ForwardKernels<Element>& kernels_;
  Results<Stored> results_;
};

template <class Stored, class Element>
void run_forward(const Scores<Stored, Element>& scores, const Parallel& parallel, Index value_dim,
                 const Results<Stored>& results) {
  const Affinities affinities(scores.problem, value_dim == 0 ? scores.problem.objects : objects_together);
  const QueryBlocks blocks =
      blocks_of_many(scores.problem.queries, scores.problem.rows, scores.blocks.lanes, affinities, parallel.threads);
  const Schedule schedule = schedule_of(scores.problem, affinities, blocks.count, parallel.threads);
  run_pass(ForwardPass<Stored, Element>(scores, affinities, blocks, value_dim, results), schedule, parallel);
}

// Blocks of queries for a read of few queries: a single block, so that each row is read once, but one block per thread
// if there are too few rows to distribute.
template <class Stored>
QueryBlocks blocks_of_few(const Scores<Stored>& scores, Index threads) {
  constexpr Index row_blocks_for_one = 8;
  const ReadProblem<Stored>& problem = scores.problem;
  const bool long_memory = problem.rows >= threads * row_blocks_for_one * rows_per_block;
  return QueryBlocks(problem.queries, FewQueriesPass<Stored>::group_of(scores), long_memory ? 1 : threads);
}

template <class Stored>
void run_few_queries(const Scores<Stored>& scores, const Parallel& parallel, const ReadResults<Stored>& results,
                     std::atomic<bool>& overflowed) {
  const Affinities affinities(scores.problem, objects_together);
  const QueryBlocks blocks = blocks_of_few(scores, parallel.threads);
  const Schedule schedule = schedule_of(scores.problem, affinities, blocks.count, parallel.threads);
  run_pass(FewQueriesPass<Stored>(scores, affinities, blocks, results, overflowed), schedule, parallel);
}

// Whether numbers are multiplied in their stored type. Features of l2 would lose accuracy, and the scores of a top-k
// read must be bit-equal to those of its thresholds. With queries for less than half of the lanes, products of floats
// in which no lane is wasted take less time.
template <class Stored>
bool multiplies_pairs(const ReadProblem<Stored>& problem) {
  return std::is_same_v<Stored, BFloat16> && pair_kernels() != nullptr && problem.similarity == Similarity::dot &&
         problem.top_k == 0 && 2 * problem.queries > pair_kernels()->lanes;
}

// The same for a quantized memory.
template <class Stored>
bool multiplies_stored(const ReadProblem<Stored>& problem) {
  if constexpr (quantized<Stored>) {
    return multiplies_quantized(problem);
  }
  return false;
}

// Whether the sums of all queries stay in the L2 cache. Only the general pass computes scores in the order of their
// thresholds.
template <class Stored>
bool has_few_queries(const ReadProblem<Stored>& problem) {
  constexpr Index most_queries = 256;
  return problem.top_k == 0 && problem.queries <= most_queries;
}

// Whether a top-k read reads the values of the selected rows one by one: a row costs several times as much as in a
// product of blocks.
template <class Stored>
bool gathers_values(const ReadProblem<Stored>& problem) {
  constexpr Index rows_for_one = 8;
  return !quantized<Stored> && problem.top_k > 0 && problem.top_k <= problem.rows / rows_for_one;
}

// The kept rows of a read, in scratch memory if they are not returned.
template <class Stored>
class Kept {
  using T = Accumulator<Stored>;

 public:
  Kept(const ReadProblem<Stored>& problem, const ReadOutputs<Stored>& outputs) : rows_(outputs.kept), scratch_(0) {
    if (rows_.rows == nullptr && (gathers_values(problem) || (outputs.usage != nullptr && problem.is_sparse()))) {
      const Index count = problem.objects * problem.queries * problem.top_k;
      Carver counter(nullptr);
      counter.take<T>(count);
      counter.take<std::int64_t>(count);
      scratch_ = Scratch(counter.used());
      Carver carver(scratch_.get());
      rows_ = {carver.take<T>(count), carver.take<std::int64_t>(count)};
    }
  }
  const KeptRows<T>& rows() const { return rows_; }

  // The read of the values by them.
  KeptProblem<Stored> problem(const ReadProblem<Stored>& read) const {
    const bool shared = read.shares_affinity();
    const Index step = shared ? 0 : read.queries * read.top_k;
    return {.objects = read.objects,
            .queries = read.queries,
            .kept = read.top_k,
            .rows = read.rows,
            .value_dim = read.value_dim,
            .weights = {rows_.weights, step, read.top_k, 1, shared},
            .kept_rows = {rows_.rows, step, read.top_k, 1, shared},
            .value = read.value};
  }

 private:
  KeptRows<T> rows_;
  Scratch scratch_;
};

template <class Stored>
void read_all_values(const Scores<Stored>& scores, const Parallel& parallel, const ReadResults<Stored>& wanted) {
  const ReadProblem<Stored>& problem = scores.problem;
  std::atomic<bool> overflowed = false;
  Results<Stored> results{wanted, {}, &overflowed};
  if (multiplies_stored(problem)) {
    if constexpr (quantized<Stored>) {
      read_quantized(problem, parallel, wanted, overflowed);
    }
  } else if (multiplies_pairs(problem)) {
    if constexpr (std::is_same_v<Stored, BFloat16>) {
      run_forward(Scores<Stored, BFloat16Pair>(problem), parallel, problem.value_dim, results);
    }
  } else if (has_few_queries(problem)) {
    run_few_queries(scores, parallel, wanted, overflowed);
  } else {
    run_forward(scores, parallel, problem.value_dim, results);
  }
  if (overflowed) {
    // the sums before their division are up to N times as large as the results: once more, in a larger unit
    results.value_unit = Accumulator<Stored>(0x1p-24);
    run_forward(scores, parallel, problem.value_dim, results);
  }
}

}  // namespace

template <class Stored>
void memory_read(const ReadProblem<Stored>& problem, const Parallel& parallel, const ReadOutputs<Stored>& outputs) {
  const Kept<Stored> kept(problem, outputs);
  const TopK<Stored> top_k(problem, parallel, kept.rows(), outputs.lse);
  if (!gathers_values(problem)) {
    read_all_values(Scores<Stored>(problem, top_k.thresholds()), parallel, {outputs.out, outputs.lse});
  } else if constexpr (!quantized<Stored>) {
    read_rows(kept.problem(problem), parallel, outputs.out);
  }
  if (outputs.usage != nullptr) {
    memory_usage(problem, parallel, outputs.lse, kept.rows(), outputs.usage);
  }
}

template <class Stored>
void softmax_statistics(const Scores<Stored>& scores, const Parallel& parallel,
                        const Statistics<Accumulator<Stored>>& statistics) {
  using T = Accumulator<Stored>;
  const Index count = scores.problem.objects * scores.blocks.padded_queries();
  std::fill_n(statistics.largest, count, std::numeric_limits<T>::infinity());
  std::fill_n(statistics.factor, count, T(0));
  run_forward(scores, parallel, 0, Results<Stored>{{}, statistics});
}

#define STM_FAST_INSTANTIATE(Stored)                                                                  \
  template void memory_read(const ReadProblem<Stored>&, const Parallel&, const ReadOutputs<Stored>&); \
  template void softmax_statistics(const Scores<Stored>&, const Parallel&, const Statistics<Accumulator<Stored>>&);
STM_FAST_INSTANTIATE(float)
STM_FAST_INSTANTIATE(double)
STM_FAST_INSTANTIATE(BFloat16)
STM_FAST_INSTANTIATE(Half)
STM_FAST_INSTANTIATE(Int8)
STM_FAST_INSTANTIATE(Float8)

}  // namespace stm_fast
