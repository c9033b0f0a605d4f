// Tiles of scores S = scale * <feature(q), feature(k)>, with queries in SIMD lanes: the start of every pass.
#pragma once

#include <algorithm>
#include <limits>

#include "blocks.h"
#include "features.h"
#include "stm_fast/tile_kernels.h"

namespace stm_fast {

// The k-th largest score of every query and the index of the last selected row with that score: [B][padded queries],
// null if the read is dense.
template <class T>
struct Thresholds {
  const T* score = nullptr;
  const Index* last = nullptr;
};

// The kernels for scores from products of Element.
template <class Element>
const auto& kernels_of() {
  if constexpr (std::is_same_v<Element, BFloat16Pair>) {
    return *pair_kernels();
  } else {
    return tile_kernels<Element>();
  }
}

template <class Stored, class Element = Accumulator<Stored>>
class Scores {
  using T = Accumulator<Stored>;

 public:
  explicit Scores(const ReadProblem<Stored>& problem, Thresholds<T> thresholds = {})
      : problem(problem),
        kernels(kernels_of<Element>()),
        blocks(problem.queries, kernels),
        features(problem),
        depth(depth_of<Element>(features.dim())),
        thresholds_(thresholds) {}

  // The scores of one panel of queries against packed rows [row, row + rows); -inf outside of the top k.
  void tile(Index object, Index panel, Index row, Index rows, const Element* keys, const Element* query, T* scores,
            Index stride) const {
    kernels.scaled_product({rows, depth, keys, 0, query, blocks.lanes, scores, stride}, problem.scale);
    if (thresholds_.score != nullptr) {
      const Index first = object * blocks.padded_queries() + panel * blocks.lanes;
      keep_largest(thresholds_.score + first, thresholds_.last + first, row, rows, scores, stride);
    }
  }

  const ReadProblem<Stored>& problem;
  const decltype(kernels_of<Element>()) kernels;
  const QueryBlocks blocks;
  const Features<Stored> features;
  const Index depth;  // of features, in elements

 private:
  void keep_largest(const T* threshold, const Index* last, Index row, Index rows, T* scores, Index stride) const {
    constexpr Index most_lanes = 64;
    T last_row[most_lanes];  // last row of this tile selected at a tie, as a T, so that the comparisons below vectorize
    for (Index i = 0; i < blocks.lanes; ++i) {
      last_row[i] = static_cast<T>(std::clamp<Index>(last[i] - row, -1, rows));
    }
    // NaN is selected: it is larger than any number
    for (Index j = 0; j < rows; ++j) {
      for (Index i = 0; i < blocks.lanes; ++i) {
        const T score = scores[j * stride + i];
        const bool taken = !(score <= threshold[i]) | ((score == threshold[i]) & (static_cast<T>(j) <= last_row[i]));
        scores[j * stride + i] = taken ? score : -std::numeric_limits<T>::infinity();
      }
    }
  }

  Thresholds<T> thresholds_;
};

}  // namespace stm_fast
