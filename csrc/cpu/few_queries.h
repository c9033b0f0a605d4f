// The dense read of few queries: channels of the values, not queries, are in SIMD lanes.
//
// With few queries the time goes into reading the memory rows, each of them once. So values are read in place if they
// have the type that is multiplied and contiguous channels in whole strips; other values are packed one block at a
// time. Keys, a fifth of the bytes, are always packed: their rows become lanes of the scores. Queries are padded only
// to groups of 4 or 8, so few lanes are wasted.
#pragma once

#include "pass.h"
#include "passes.h"
#include "results.h"
#include "scores.h"

namespace stm_fast {

template <class Stored>
class FewQueriesPass {
  using T = Accumulator<Stored>;

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
        overflowed_(overflowed) {}

  // The workspace of one thread.
  struct Workspace {
    Workspace(const FewQueriesPass& pass, Carver& carver) {
      const Index queries = pass.block_queries(), features = pass.scores_.features.dim();
      query = carver.take<T>(queries * features);
      keys = carver.take<T>(pass.padded_rows() * features);
      scores = carver.take<T>(queries * pass.padded_rows());
      values = carver.take<T>(pass.reads_in_place() ? 0 : pass.strips_ * pass.kernels_.strip_lanes * rows_per_block);
      rescale = carver.take<T>(queries);
      buffer = carver.take<T>(std::max(queries, rows_per_block) * features);
      means = carver.take<T>(pass.strips_ * pass.kernels_.strip_lanes);
    }
    T* query;    // [query groups][features][group_rows]
    T* keys;     // [row panels][features][lanes]
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
    scores_.features.pack_queries(object, first_query(segment), blocks_.queries_in_block(segment.query_block),
                                  kernels_.group_rows, work.buffer, work.query);
    std::fill_n(result.largest, queries, -std::numeric_limits<T>::infinity());
    std::fill_n(result.total, queries, T(0));

    const Index begin = segment.begin * rows_per_block;
    const Index end = std::min(problem_.rows_of(object), segment.end * rows_per_block);
    if (begin >= end) {
      std::fill_n(result.sums, objects * object_size(), T(0));
    }
    for (Index row = begin; row < end; row += rows_per_block) {
      const Index rows = std::min(rows_per_block, end - row);
      make_scores(object, row, rows, queries, work);
      kernels_.softmax_step_of_rows(work.scores, queries, rows, padded_rows(),
                                    {result.largest, result.total, work.rescale});
      const T* const rescale = row == begin ? nullptr : work.rescale;
      for (Index other = 0; other < objects; ++other) {
        add_values(object + other, row, rows, end, queries, work, rescale, result.sums + other * object_size());
      }
    }
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
        kernels_.scale_strips(sums + i * lanes, strips_, queries * lanes, mean_factor(result.total[i]), work.means);
        const Index at = (affinities_.first_object(segment.affinity) + object) * blocks_.queries;
        write_query(results_, at + first_query(segment) + i, problem_.value_dim, result.largest[i], result.total[i],
                    work.means, overflowed_);
      }
    }
  }

 private:
  Index padded_rows() const { return round_up(rows_per_block, kernels_.lanes); }
  Index block_queries() const { return blocks_.largest_block() * blocks_.lanes; }
  Index padded_queries(const Segment& segment) const { return blocks_.panels_in(segment.query_block) * blocks_.lanes; }
  Index first_query(const Segment& segment) const { return blocks_.first_panel(segment.query_block) * blocks_.lanes; }
  Index object_size() const { return strips_ * block_queries() * kernels_.strip_lanes; }

  // Whether the values are multiplied in place.
  bool reads_in_place() const {
    return std::is_same_v<Stored, T> && problem_.value.column_stride == 1 &&
           problem_.value_dim % kernels_.strip_lanes == 0;
  }

  void make_scores(Index object, Index row, Index rows, Index queries, const Workspace& work) const {
    const Index lanes = kernels_.lanes, features = scores_.features.dim();
    scores_.features.pack_keys(object, row, rows, lanes, work.buffer, work.keys);
    for (Index first = 0; first < rows; first += lanes) {
      kernels_.scaled_product(
          {queries, features, work.query, 0, work.keys + first * features, lanes, work.scores + first, padded_rows()},
          problem_.scale);
    }
  }

  void add_values(Index object, Index row, Index rows, Index end, Index queries, const Workspace& work,
                  const T* rescale, T* sums) const {
    const Index lanes = kernels_.strip_lanes;
    const Matrix<const Stored> values = problem_.value[object].from_row(row);
    StripProduct<T> product{.queries = queries,
                            .rows = rows,
                            .strips = strips_,
                            .weights = work.scores,
                            .weights_stride = padded_rows(),
                            .values = work.values,
                            .strip_stride = rows * lanes,
                            .row_stride = lanes,
                            .rows_after = 0,
                            .rescale = rescale,
                            .sums = sums};
    if (reads_in_place()) {
      if constexpr (std::is_same_v<Stored, T>) {
        product.values = values.data;
        product.strip_stride = lanes;
        product.row_stride = values.row_stride;
        product.rows_after = end - row - rows;
      }
    } else {
      if constexpr (quantized<Stored>) {
        pack_dequantized_values(problem_, object, row, rows, problem_.value_dim, lanes, work.values);
      } else {
        pack_panels(values.transposed(), problem_.value_dim, rows, lanes, work.values);
      }
    }
    kernels_.rescale_and_add_strips(product);
  }

  const Scores<Stored>& scores_;
  const ReadProblem<Stored>& problem_;
  const TileKernels<T>& kernels_;
  const QueryBlocks& blocks_;
  const Affinities affinities_;
  Index strips_;
  ReadResults<Stored> results_;
  std::atomic<bool>& overflowed_;
};

}  // namespace stm_fast
