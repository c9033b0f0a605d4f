// Tiles of the finished softmax P, made again from the scores: for the passes that come after the forward one.
#pragma once

#include "pass.h"
#include "passes.h"

namespace stm_fast {

template <class Stored>
class SoftmaxWeights {
  using T = Accumulator<Stored>;

 public:
  SoftmaxWeights(const Scores<Stored>& scores, const Parallel& parallel)
      : scores_(scores), batches_(scores.problem.query_batches()), scratch_(bytes()) {
    Carver carver(scratch_.get());
    carve(carver);
    softmax_statistics(scores, parallel, statistics_);
    run_items<Room>(scores, batches_ * scores.blocks.panels, parallel, [&](Index item, const Room& room) {
      const Index panel = item % scores_.blocks.panels, lanes = scores_.blocks.lanes;
      scores_.features.pack_queries(item / scores_.blocks.panels, panel * lanes, scores_.blocks.queries_in_panel(panel),
                                    lanes, room.features, queries_ + item * scores_.features.dim() * lanes);
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
  struct Room {
    Room(const Scores<Stored>& scores, Carver& carver)
        : features(carver.take<T>(scores.blocks.lanes * scores.features.dim())) {}
    T* features;
  };

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
