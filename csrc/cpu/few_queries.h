// The dense read of few queries: channels of the values, not queries, are in SIMD lanes.
//
// With few queries the time goes into reading the memory rows, each of them once. So values are read in place if they
// are floating-point numbers with a kernel for that and have contiguous channels in whole strips; other values are
// packed one block at a time. Keys, a fifth of the bytes, are packed: their rows become lanes of the scores. Queries
// are padded only to groups of 4 or 8, so few lanes are wasted.
//
// With up to 2 or 4 queries the products cost less than packing, and memory is the limit. Then keys are read
// in place too, with features in lanes, and the rows come from several places at once: one stream does not fill the
// bandwidth of the memory.
#pragma once

#include <bit>
#include <cstdint>
#include <utility>

#include "pass.h"
#include "passes.h"
#include "results.h"
#include "scores.h"

namespace stm_fast {

template <class Stored>
class FewQueriesPass {
  using T = Accumulator<Stored>;
  using Order = RowOrder;

 public:
  FewQueriesPass(const Scores<Stored>& scores, const Affinities& affinities, const QueryBlocks& blocks,
                 const ReadResults<Stored>& results, std::atomic<bool>& overflowed)
      : scores_(scores),
        problem_(scores.problem),
        kernels_(scores.kernels),
        blocks_(blocks),
        affinities_(affinities),
        strips_(divide_up(problem_.value_dim, kernels_.strip_lanes)),
        results_(results),
        overflowed_(overflowed),
        streams_(streams(scores)) {}

  // The queries that are padded to a multiple of this number.
  static Index group_of(const Scores<Stored>& scores) {
    const auto queries = static_cast<std::uint64_t>(scores.problem.queries);
    return streams(scores) ? static_cast<Index>(std::bit_ceil(queries)) : scores.kernels.group_rows;
  }

  // The workspace of one thread.
  struct Workspace {
    Workspace(const FewQueriesPass& pass, Carver& carver) {
      const Index queries = pass.block_queries(), features = pass.scores_.features.dim();
      query = carver.take<T>(queries * features);
      keys = carver.take<T>(pass.streams_ ? 0 : pass.padded_rows() * features);
      scores = carver.take<T>(queries * pass.padded_rows());
      values = carver.take<T>(pass.reads_in_place() ? 0 : pass.strips_ * pass.kernels_.strip_lanes * rows_per_block);
      rescale = carver.take<T>(queries);
      buffer = carver.take<T>(std::max(queries, rows_per_block) * features);
      means = carver.take<T>(pass.strips_ * pass.kernels_.strip_lanes);
    }
    T* query;    // [query groups][features][group_rows], or [queries][features] if keys are read in place
    T* keys;     // [row panels][features][lanes], if they are not
    T* scores;   // [queries][rows padded]
    T* values;   // [strips][rows][strip_lanes], if they are not read in place
    T* rescale;  // [queries]
    T* buffer;   // for features before packing
    T* means;    // [value_dim padded], of one query
  };

  // The partial results of a block of queries.
  struct Partial {
    Partial(const FewQueriesPass& pass, Carver& carver) {
      const Index queries = pass.block_queries();
      sums = carver.take<T>(pass.affinities_.most_objects() * pass.object_size());
      largest = carver.take<T>(queries);
      total = carver.take<T>(queries);
    }
    T* sums;     // [objects][strips][queries padded][strip_lanes], relative to `largest`
    T* largest;  // [queries padded]
    T* total;    // [queries padded]
  };

  void read(const Segment& segment, const Workspace& work, const Partial& result) const {
    const Index object = affinities_.first_object(segment.affinity), objects = affinities_.objects_of(segment.affinity);
    const Index queries = padded_queries(segment);
    pack_queries(segment, work);
    std::fill_n(result.largest, queries, -std::numeric_limits<T>::infinity());
    std::fill_n(result.total, queries, T(0));

    const Index begin = segment.begin * rows_per_block;
    const Index end = std::min(problem_.rows_of(object), segment.end * rows_per_block);
    if (begin >= end) {
      std::fill_n(result.sums, objects * object_size(), T(0));
    }
    bool first = true;
    for_blocks(begin, end, [&](const RowBlock& block) {
      make_scores(object, block, queries, work);
      kernels_.softmax_step_of_rows(work.scores, queries, block.rows, padded_rows(),
                                    {result.largest, result.total, work.rescale});
      const T* const rescale = std::exchange(first, false) ? nullptr : work.rescale;
      for (Index other = 0; other < objects; ++other) {
        const Bytes soon = other + 1 < objects ? Bytes{} : next_keys(object, block);
        add_values(object + other, block, queries, work, rescale, result.sums + other * object_size(), soon);
      }
    });
  }

  // whole += part, each relative to its own largest score.
  void add(const Segment& segment, const Partial& part, const Partial& whole) const {
    const Index queries = padded_queries(segment), lanes = kernels_.strip_lanes;
    for (Index i = 0; i < queries; ++i) {
      const Joint<T> joint(whole.largest[i], part.largest[i]);
      whole.largest[i] = joint.largest;
      whole.total[i] = joint.of(whole.total[i], part.total[i]);
      for (Index object = 0; object < affinities_.objects_of(segment.affinity); ++object) {
        for (Index strip = 0; strip < strips_; ++strip) {
          const Index first = object * object_size() + (strip * queries + i) * lanes;
          for (Index at = first; at < first + lanes; ++at) {
            whole.sums[at] = joint.of(whole.sums[at], part.sums[at]);
          }
        }
      }
    }
  }

  void write(const Segment& segment, const Workspace& work, const Partial& result) const {
    const Index queries = padded_queries(segment), lanes = kernels_.strip_lanes;
    for (Index object = 0; object < affinities_.objects_of(segment.affinity); ++object) {
      const T* const sums = result.sums + object * object_size();
      for (Index i = 0; i < blocks_.queries_in_block(segment.query_block); ++i) {
        const Index at = (affinities_.first_object(segment.affinity) + object) * blocks_.queries;
        write_query(at + first_query(segment) + i, sums + i * lanes, queries * lanes, result.largest[i],
                    result.total[i], work.means);
      }
    }
  }

 private:
  Index padded_rows() const { return round_up(rows_per_block, kernels_.lanes); }
  Index block_queries() const { return blocks_.largest_block() * blocks_.lanes; }
  Index padded_queries(const Segment& segment) const { return blocks_.panels_in(segment.query_block) * blocks_.lanes; }
  Index first_query(const Segment& segment) const { return blocks_.first_panel(segment.query_block) * blocks_.lanes; }
  Index object_size() const { return strips_ * block_queries() * kernels_.strip_lanes; }

  // The results of query number `at` from its sums, whose strips are `stride` apart.
  void write_query(Index at, const T* sums, Index stride, T largest, T total, T* means) const {
    Dense<Stored>* const out = results_.out + at * problem_.value_dim;
    const T factor = mean_factor(total);
    if constexpr (std::is_same_v<Dense<Stored>, T>) {
      if (problem_.value_dim % kernels_.strip_lanes == 0) {
        means = out;
      }
    }
    const bool finite = kernels_.scale_strips(sums, strips_, stride, factor, means);
    if (static_cast<const void*>(means) != out) {
      write_means<Stored>(means, problem_.value_dim, out);
    }
    results_.lse[at] = log_sum(largest, total);
    if (!finite) {
      overflowed_.store(true, std::memory_order_relaxed);
    }
  }

  // Memory rows first, first + step, ... in runs whose starts are `run_step` rows apart; `after` rows follow in memory.
  struct RowBlock {
    Index first;
    Index rows;
    Index step;
    Index run_step;
    Index after;

    // The same in elements.
    Order order(Index row_stride) const { return {step * row_stride, run_step * row_stride}; }
  };

  // Whether the values are multiplied in place.
  static bool reads_values_in_place(const Scores<Stored>& scores) {
    return has_row_kernels && scores.problem.value.column_stride == 1 &&
           scores.problem.value_dim % scores.kernels.strip_lanes == 0;
  }
  bool reads_in_place() const { return reads_values_in_place(scores_); }

  // Whether keys and values are read in place, in several streams.
  static bool streams(const Scores<Stored>& scores) {
    const ReadProblem<Stored>& problem = scores.problem;
    return problem.queries <= scores.kernels.group_rows / 2 && reads_values_in_place(scores) &&
           scores.features.are_stored() && problem.key.column_stride == 1 &&
           problem.key_dim % scores.kernels.vector_lanes == 0;
  }

  // Calls task(block) for memory rows [begin, end). With streams, a run has one row of each; an odd number of rows
  // between streams keeps their lines in different sets of the caches.
  template <class Task>
  void for_blocks(Index begin, Index end, const Task& task) const {
    constexpr Index streams = Order::run_rows, rows_of_stream = rows_per_block / streams;
    if (const Index apart = ((end - begin) / streams - 1) | 1; streams_ && apart > 0) {
      for (Index row = 0; row < apart; row += rows_of_stream) {
        task(RowBlock{begin + row, streams * std::min(rows_of_stream, apart - row), apart, 1, 0});
      }
      begin += streams * apart;
    }
    for (Index row = begin; row < end; row += rows_per_block) {
      const Index rows = std::min(rows_per_block, end - row);
      task(RowBlock{row, rows, 1, Order::run_rows, end - row - rows});
    }
  }

  void pack_queries(const Segment& segment, const Workspace& work) const {
    const Index object = affinities_.first_object(segment.affinity), first = first_query(segment);
    const Index queries = blocks_.queries_in_block(segment.query_block), features = scores_.features.dim();
    if (streams_) {
      std::fill_n(work.query, padded_queries(segment) * features, T(0));
      scores_.features.pack_query_columns(object, first, queries, features, work.buffer, work.query);
    } else {
      scores_.features.pack_queries(object, first, queries, kernels_.group_rows, work.buffer, work.query);
    }
  }

  void make_scores(Index object, const RowBlock& block, Index queries, const Workspace& work) const {
    const Index lanes = kernels_.lanes, features = scores_.features.dim();
    if constexpr (has_row_kernels) {
      if (streams_) {
        const Matrix<const Stored> keys = problem_.key[object].from_row(block.first);
        const Order order = block.order(keys.row_stride);
        return kernels_.template of_rows<Stored>().scores(
            {queries, block.rows, features, work.query, keys.data, order, problem_.scale, work.scores, padded_rows()});
      }
    }
    scores_.features.pack_keys(object, block.first, block.rows, lanes, work.buffer, work.keys);
    for (Index first = 0; first < block.rows; first += lanes) {
      const Index unused = std::max<Index>(0, first + lanes - block.rows);
      kernels_.scaled_product({queries, features, work.query, 0, work.keys + first * features, lanes,
                               work.scores + first, padded_rows(), unused},
                              problem_.scale);
    }
  }

  // The keys of the block that follows in memory, if they are adjacent.
  Bytes next_keys(Index object, const RowBlock& block) const {
    const Matrix<const Stored> keys = problem_.key[object].from_row(block.first + block.rows);
    if (keys.column_stride != 1 || keys.row_stride != problem_.key_dim) {
      return {};
    }
    const Index numbers = std::min(block.after, rows_per_block) * problem_.key_dim;
    return {reinterpret_cast<const std::byte*>(keys.data), numbers * static_cast<Index>(sizeof(Stored))};
  }

  void add_values(Index object, const RowBlock& block, Index queries, const Workspace& work, const T* rescale, T* sums,
                  const Bytes& soon) const {
    const Index lanes = kernels_.strip_lanes;
    const Matrix<const Stored> values = problem_.value[object].from_row(block.first);
    const auto add = [&]<class From>(const RowKernels<From>& kernels, const From* from, Index strip_stride, Order order,
                                     Index after) {
      kernels.rescale_and_add_strips({queries, block.rows, strips_, work.scores, padded_rows(), from, strip_stride,
                                      order, after, rescale, sums, soon});
    };
    if constexpr (has_row_kernels) {
      if (reads_in_place()) {
        return add(kernels_.template of_rows<Stored>(), values.data, lanes, block.order(values.row_stride),
                   block.after);
      }
    }
    if constexpr (quantized<Stored>) {
      pack_dequantized_values(problem_, object, block.first, block.rows, problem_.value_dim, lanes, work.values);
    } else {
      pack_panels(values.transposed(), problem_.value_dim, block.rows, lanes, work.values);
    }
    add(kernels_.rows, work.values, block.rows * lanes, Order{lanes, Order::run_rows * lanes}, 0);
  }

  // Whether there are kernels that read Stored.
  static constexpr bool has_row_kernels = std::is_same_v<Stored, T> || std::is_same_v<Stored, BFloat16>;

  const Scores<Stored>& scores_;
  const ReadProblem<Stored>& problem_;
  const TileKernels<T>& kernels_;
  const QueryBlocks& blocks_;
  const Affinities affinities_;
  Index strips_;
  ReadResults<Stored> results_;
  std::atomic<bool>& overflowed_;
  bool streams_;
};

}  // namespace stm_fast
