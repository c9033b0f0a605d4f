// The sums of a pass with queries in SIMD lanes, until they are written: weighted values of a block of queries.
#pragma once

#include <algorithm>
#include <limits>

#include "blocks.h"
#include "pass.h"
#include "results.h"
#include "stm_fast/pack.h"

namespace stm_fast {

// The most objects with a shared affinity that are read together: their sums are the greater part of the scratch
// memory, 0.4 MB each at Cv 512, twice per thread.
inline constexpr Index objects_together = 3;

// Each block packs all memory rows again. So there are as few blocks as keep every thread busy, but small enough that
// their sums stay in the L3 cache. Many threads divide the rows, if these are enough, instead of using ever smaller
// blocks.
inline QueryBlocks blocks_of_many(Index queries, Index rows, Index lanes, const Affinities& affinities, Index threads) {
  constexpr Index most_queries = 816;
  const Index panels = divide_up(queries, lanes);
  const Index least = divide_up(panels, std::max<Index>(1, most_queries / lanes));
  const bool few_rows = rows < threads * rows_per_block;
  const Index most = few_rows ? panels : divide_up(panels, std::max<Index>(1, queries_per_block / lanes));
  const Index for_threads = divide_up(threads, std::max<Index>(1, affinities.count));
  return QueryBlocks(queries, lanes, std::clamp(for_threads, least, std::max(least, most)));
}

// Packed rows in the order in which the kernels read them.
template <class Kernels, class Element>
void arrange(const Kernels& kernels, Element* panels, Index rows, Index depth) {
  if (kernels.arrange != nullptr) {
    kernels.arrange(panels, divide_up(rows, kernels.group_rows), depth);
  }
}

template <class T>
class PanelSums {
 public:
  PanelSums(const Affinities& affinities, const QueryBlocks& blocks, Index value_dim, Index group_rows)
      : blocks_(blocks),
        affinities_(affinities),
        value_dim_(value_dim),
        padded_value_dim_(round_up(value_dim, group_rows)) {}

  // The partial results of a block of queries, by panel.
  struct Partial {
    Partial(const PanelSums& pass, Carver& carver) {
      const Index queries = pass.block_queries();
      sums = carver.take<T>(pass.affinities_.most_objects() * queries * pass.padded_value_dim_);
      largest = carver.take<T>(queries);
      total = carver.take<T>(queries);
    }
    T* sums;     // [objects][panels][value_dim padded][lanes], relative to `largest`
    T* largest;  // [panels][lanes]
    T* total;    // [panels][lanes]
  };

  // whole += part, each relative to its own largest score.
  void add(const Segment& segment, const Partial& part, const Partial& whole) const {
    const Index lanes = blocks_.lanes;
    for (Index i = 0; i < blocks_.panels_in(segment.query_block) * lanes; ++i) {
      const Joint<T> joint(whole.largest[i], part.largest[i]);
      whole.largest[i] = joint.largest;
      whole.total[i] = joint.of(whole.total[i], part.total[i]);
      for (Index object = 0; object < affinities_.objects_of(segment.affinity); ++object) {
        const Index first = object * object_size() + i / lanes * panel_size() + i % lanes;
        for (Index c = 0; c < value_dim_; ++c) {
          const Index at = first + c * lanes;
          whole.sums[at] = joint.of(whole.sums[at], part.sums[at]);
        }
      }
    }
  }

 protected:
  Index block_queries() const { return blocks_.largest_block() * blocks_.lanes; }

  // Before the first row of a segment.
  void clear(const Segment& segment, const Partial& result) const {
    const Index queries = blocks_.panels_in(segment.query_block) * blocks_.lanes;
    std::fill_n(result.sums, affinities_.objects_of(segment.affinity) * object_size(), T(0));
    std::fill_n(result.largest, queries, -std::numeric_limits<T>::infinity());
    std::fill_n(result.total, queries, T(0));
  }

  // The sums of one panel of queries for an object, counted from the first of the affinity.
  T* sums_of(const Partial& result, Index object, Index panel) const {
    return result.sums + object * object_size() + panel * panel_size();
  }

  // write(object, query, largest, total, means) for each query of a group; `scratch` is for means_size() numbers.
  template <class Write>
  void for_means(const Segment& segment, const Partial& result, T* scratch, const Write& write) const {
    const Index first = blocks_.first_panel(segment.query_block);
    for (Index object = 0; object < affinities_.objects_of(segment.affinity); ++object) {
      for (Index panel = 0; panel < blocks_.panels_in(segment.query_block); ++panel) {
        const T* const sums = sums_of(result, object, panel);
        for (Index i = 0; i < blocks_.queries_in_panel(first + panel); ++i) {
          const Index query = (first + panel) * blocks_.lanes + i, at = panel * blocks_.lanes + i;
          if (i % quad == 0) {
            gather_sums(sums + i, scratch);
          }
          T* const means = scratch + i % quad * padded_value_dim_;
          const T factor = mean_factor(result.total[at]);
          std::transform(means, means + value_dim_, means, [factor](T sum) { return sum * factor; });
          write(affinities_.first_object(segment.affinity) + object, query, result.largest[at], result.total[at],
                means);
        }
      }
    }
  }
  Index means_size() const { return quad * padded_value_dim_; }

  const QueryBlocks& blocks_;
  const Affinities affinities_;
  const Index value_dim_;
  const Index padded_value_dim_;

 private:
  static constexpr Index quad = packing::quad;  // queries

  // The sums of neighboring queries of a panel as rows [quad][value_dim padded].
  void gather_sums(const T* sums, T* rows) const {
    for (Index c = 0; c < padded_value_dim_; c += quad) {
      packing::transpose_quad(sums + c * blocks_.lanes, blocks_.lanes, rows + c, padded_value_dim_);
    }
  }
  Index panel_size() const { return padded_value_dim_ * blocks_.lanes; }
  Index object_size() const { return blocks_.largest_block() * panel_size(); }
};

}  // namespace stm_fast
