// Tiles of the final softmax P, recomputed from the scores, for the passes after the forward pass.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "pass.h"
#include "passes.h"

namespace stm_fast {

template <class Stored>
class SoftmaxWeights {
  using T = Accumulator<Stored>;

 public:
  // `lse` [B, M, 1] of the same read, if available, may save a pass over the keys.
  SoftmaxWeights(const Scores<Stored>& scores, const Parallel& parallel, const Batch<const T>& lse = {})
      : scores_(scores), batches_(scores.problem.query_batches()), scratch_(bytes()) {
    Carver carver(scratch_.get());
    carve(carver);
    if (!(lse && take_statistics(lse))) {
      softmax_statistics(scores, parallel, statistics_);
    }
    run_items<Buffer>(scores, batches_ * scores.blocks.panels, parallel, [&](Index item, const Buffer& buffer) {
      const Index panel = item % scores_.blocks.panels, lanes = scores_.blocks.lanes;
      scores_.features.pack_queries(item / scores_.blocks.panels, panel * lanes, scores_.blocks.queries_in_panel(panel),
                                    lanes, buffer.features, queries_ + item * scores_.features.dim() * lanes);
    });
  }

  // The weights of one panel of queries for packed rows [row, row + rows).
  void tile(Index object, Index panel, Index row, Index rows, const T* keys, T* weights, Index stride) const {
    const Index lanes = scores_.blocks.lanes, query = (batches_ == 1 ? 0 : object) * scores_.blocks.panels + panel;
    const Index first = (object * scores_.blocks.panels + panel) * lanes;
    scores_.tile(object, panel, row, rows, keys, queries_ + query * scores_.features.dim() * lanes, weights, stride);
    scores_.kernels.weights(weights, rows, stride, statistics_.largest + first, statistics_.factor + first);
  }

 private:
  struct Buffer {
    Buffer(const Scores<Stored>& scores, Carver& carver)
        : features(carver.take<T>(scores.blocks.lanes * scores.features.dim())) {}
    T* features;
  };

  // Computes statistics from lse; false if one is NaN, or so large that its rounding would matter.
  bool take_statistics(const Batch<const T>& lse) {
    // up to this size its rounding is about that of a computed score
    constexpr T most = std::is_same_v<T, float> ? 16 : 0;
    const ReadProblem<Stored>& problem = scores_.problem;
    const Index padded = scores_.blocks.padded_queries();
    std::fill_n(statistics_.largest, problem.objects * padded, std::numeric_limits<T>::infinity());
    std::fill_n(statistics_.factor, problem.objects * padded, T(0));
    for (Index object = 0; object < problem.objects; ++object) {
      for (Index query = 0; query < problem.queries; ++query) {
        const T found = lse[object].at(query, 0);
        if (found == -std::numeric_limits<T>::infinity()) {
          continue;
        }
        if (!(std::abs(found) <= most)) {
          return false;
        }
        statistics_.largest[object * padded + query] = found;
        statistics_.factor[object * padded + query] = 1;
      }
    }
    return true;
  }

  void carve(Carver& carver) {
    const Index padded = scores_.blocks.padded_queries();
    queries_ = carver.take<T>(batches_ * padded * scores_.features.dim());
    statistics_ = {carver.take<T>(scores_.problem.objects * padded), carver.take<T>(scores_.problem.objects * padded)};
  }
  Index bytes() {
    Carver carver(nullptr);
    carve(carver);
    return carver.used();
  }

  const Scores<Stored>& scores_;
  Index batches_;
  T* queries_ = nullptr;  // [Bq][panels][features][lanes]
  Statistics<T> statistics_ = {};
  Scratch scratch_;
};

}  // namespace stm_fast
