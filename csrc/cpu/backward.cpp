// The backward read: every gradient in one pass over the memory, the affinity recomputed block by block (Dao et al.
// 2022, algorithm 4). With P = softmax(S), S = scale * Q K^T on the features of queries and keys (features.h):
//   dV = P^T dO      dP = dO V^T      dS = P * (dP - delta), delta = rowsum(dO * O) - dlse
//   dQ = scale * dS K      dK = scale * dS^T Q
// A task owns a range of memory rows, so dK and dV are summed in one place. Each task sums its own dQ; the sums of the
// tasks are added in the order of the tasks, so that two runs are bit-equal.
//
// Of bfloat16 tensors, dP, dV and, for the dot product, dK are products of pairs, where the machine multiplies them: P
// and dS are rounded for that, as they are where they are stored.
#include <vector>

#include "clones.h"
#include "softmax_weights.h"

namespace stm_fast {

namespace {

STM_FAST_CLONES
void narrow_row(const float* __restrict row, Index count, BFloat16* __restrict narrowed) {
  for (Index i = 0; i < count; ++i) {
    narrowed[i] = narrow<BFloat16>(row[i]);
  }
}

// The query side of the backward products. Delta is computed once for all tasks. Features in rows, and the gradient of
// the output, are packed again for each block of rows, right before the product that reads them, or read in place where
// a packed panel would not stay in the L1 cache: this saves one copy of the features and two of the gradient, [B, M,
// Cv] each.
template <class Stored>
class QuerySide {
  using T = Accumulator<Stored>;

 public:
  QuerySide(const Scores<Stored>& scores, const Parallel& parallel, const ReadGradients<Stored>& gradients)
      : scores_(scores),
        problem_(scores.problem),
        gradients_(gradients),
        lanes_(scores.blocks.lanes),
        wide_features_(round_up(scores.features.dim(), lanes_)),
        wide_values_(round_up(problem_.value_dim, lanes_)),
        scratch_(bytes()) {
    Carver carver(scratch_.get());
    carve(carver);
    const Index panels = scores.blocks.panels;
    parallel.run(problem_.objects * panels, [&](Index item) { make_delta(item / panels, item % panels); });
  }

  Index wide_features() const { return wide_features_; }
  Index wide_values() const { return wide_values_; }

  // [lanes] of a panel
  const T* delta(Index object, Index panel) const { return delta_ + (object * scores_.blocks.panels + panel) * lanes_; }
  // A factor of a product: rows of lanes, `stride` apart, the last ones `unused`.
  template <class Element>
  struct Lanes {
    const Element* data;
    Index stride;
    Index unused;
  };

  // The features of queries from `query` on, as panels [feature panels][queries in elements][lanes] in `packed` or in
  // place.
  template <class Element, class Task>
  void for_feature_rows(Index object, Index query, Index queries, T* buffer, Element* packed, const Task& task) const {
    const Index features = scores_.features.dim();
    const bool in_place = scores_.features.are_stored() && reads_in_place(problem_.query, features);
    if (!in_place) {
      scores_.features.pack_query_columns(object, query, queries, lanes_, buffer, packed);
    }
    for (Index panel = 0; panel < wide_features_ / lanes_; ++panel) {
      const Index unused = unused_lanes(panel, features);
      if constexpr (std::is_same_v<Stored, T>) {
        if (in_place) {
          const Matrix<const T> rows = problem_.query[object].from_row(query);
          task(panel, Lanes<T>{rows.data + panel * lanes_, rows.row_stride, unused});
          continue;
        }
      }
      task(panel, Lanes<Element>{packed + panel * depth_of<Element>(queries) * lanes_, lanes_, unused});
    }
  }

  // The gradient of the output of a panel of queries, as [value_dim in elements][lanes]; in groups of channels such
  // that the output stays in the L1 cache until its lines are full.
  template <class Element>
  void pack_grad_out(Index object, Index panel, Element* columns) const {
    constexpr Index channels = 128;
    const Matrix<const Stored> rows = gradients_.grad_out[object].from_row(panel * lanes_);
    for (Index c = 0; c < problem_.value_dim; c += channels) {
      pack_panels(rows.transposed().from_row(c).transposed(), scores_.blocks.queries_in_panel(panel),
                  std::min(channels, problem_.value_dim - c), lanes_, columns + depth_of<Element>(c) * lanes_);
    }
  }
  // The same for queries from `query` on and the channels of a panel: [queries in elements][lanes] in `packed` or in
  // place.
  template <class Element>
  Lanes<Element> grad_out_rows(Index object, Index column_panel, Index query, Index queries, Element* packed) const {
    const Index first = column_panel * lanes_, unused = unused_lanes(column_panel, problem_.value_dim);
    const Matrix<const Stored> rows = gradients_.grad_out[object].from_row(query);
    if constexpr (std::is_same_v<Stored, T>) {
      if (reads_in_place(gradients_.grad_out, problem_.value_dim)) {
        return {rows.data + first, rows.row_stride, unused};
      }
    }
    pack_panels(rows.transposed().from_row(first), lanes_ - unused, queries, lanes_, packed);
    return {packed, lanes_, unused};
  }

 private:
  // Whether rows of this width are multiplied in place: they consist of whole vectors, and packed panels would not stay
  // in the L1 cache. If they do, every product with one gains more than packing it costs.
  bool reads_in_place(const Batch<const Stored>& rows, Index columns) const {
    constexpr Index l1_cache = 32 * 1024;
    const bool panel_fits = queries_per_block * lanes_ * static_cast<Index>(sizeof(T)) <= l1_cache;
    return std::is_same_v<Stored, T> && !panel_fits && rows.column_stride == 1 &&
           columns % scores_.kernels.vector_lanes == 0;
  }
  Index unused_lanes(Index panel, Index columns) const { return std::max<Index>(0, (panel + 1) * lanes_ - columns); }

  void carve(Carver& carver) { delta_ = carver.take<T>(problem_.objects * scores_.blocks.padded_queries()); }
  Index bytes() {
    Carver carver(nullptr);
    carve(carver);
    return carver.used();
  }

  void make_delta(Index object, Index panel) const {
    const Index first = panel * lanes_, at = object * scores_.blocks.padded_queries() + first;
    const Matrix<const Stored> grad_out = gradients_.grad_out[object], out = gradients_.out[object];
    std::fill_n(delta_ + at, lanes_, T(0));
    for (Index i = 0; i < scores_.blocks.queries_in_panel(panel); ++i) {
      T sum = 0;
      for (Index c = 0; c < problem_.value_dim; ++c) {
        sum += widen(grad_out.at(first + i, c)) * widen(out.at(first + i, c));
      }
      delta_[at + i] = sum - gradients_.grad_lse[object].at(first + i, 0);
    }
  }

  const Scores<Stored>& scores_;
  const ReadProblem<Stored>& problem_;
  const ReadGradients<Stored>& gradients_;
  Index lanes_;
  Index wide_features_;
  Index wide_values_;
  T* delta_ = nullptr;  // [B][panels][lanes]
  Scratch scratch_;
};

// Objects [object, object_end) over row blocks [begin, end); its sums of dQ start at `slot`, one for each query batch.
struct Task {
  Index object;
  Index object_end;
  Index begin;
  Index end;
  Index slot;
};

template <class Stored>
class BackwardPass {
  using T = Accumulator<Stored>;

 public:
  BackwardPass(const Scores<Stored>& scores, const Parallel& parallel, const ReadGradients<Stored>& gradients)
      : scores_(scores),
        problem_(scores.problem),
        kernels_(scores.kernels),
        blocks_(scores.blocks),
        parallel_(parallel),
        gradients_(gradients),
        weights_(scores, parallel, gradients.lse),
        query_side_(scores, parallel, gradients),
        padded_features_(round_up(scores.features.dim(), kernels_.group_rows)) {
    plan();
  }

  void run() const {
    const Scratch slots(slots_ * slot_size() * static_cast<Index>(sizeof(T)));
    T* const grad_queries = reinterpret_cast<T*>(slots.get());
    const Scratch shrinkage(problem_.shrinkage ? problem_.objects * problem_.rows * static_cast<Index>(sizeof(T)) : 0);
    T* const grad_shrinkage = reinterpret_cast<T*>(shrinkage.get());
    if (problem_.shrinkage) {
      std::fill_n(grad_shrinkage, problem_.objects * problem_.rows, T(0));
    }
    run_items<Workspace>(*this, std::ssize(tasks_), parallel_, [&](Index i, const Workspace& work) {
      run_task(tasks_[i], work, grad_queries + tasks_[i].slot * slot_size(), grad_shrinkage);
    });
    run_items<FeatureBuffer>(*this, problem_.query_batches() * blocks_.panels, parallel_,
                             [&](Index i, const FeatureBuffer& buffer) {
                               write_queries(i / blocks_.panels, i % blocks_.panels, grad_queries, buffer.feature);
                             });
    if (problem_.shrinkage) {
      write_shrinkage(grad_shrinkage);
    }
  }

 private:
  // In floats, at Ck 128 and Cv 512 on AVX2: keys, their columns, dK, columns and scratch 5 x 0.1 MB, values and dV
  // 0.8, the tiles P and dS 0.3, the rest 0.1: 1.7 MB per thread. Plus, for M queries: the features and one dQ per
  // thread, 0.5 KB each. At 480p with two threads that is 5.9 MB, for any memory size.
  struct Workspace {
    Workspace(const BackwardPass& pass, Carver& carver) {
      const Index rows = pass.padded_rows(), queries = pass.tile_stride(), features = pass.scores_.features.dim();
      keys = carver.take<T>(rows * features);
      key_columns = carver.take<T>(rows * pass.padded_features_);
      values = carver.take<T>(rows * pass.problem_.value_dim);
      weights = carver.take<T>(rows * queries);
      grad_scores = carver.take<T>(rows * queries);
      grad_features = carver.take<T>(rows * pass.query_side_.wide_features());
      grad_values = carver.take<T>(rows * pass.query_side_.wide_values());
      grad_keys = carver.take<T>(rows * pass.problem_.key_dim);
      columns = carver.take<T>(std::max({queries * pass.query_side_.wide_features(), queries * pass.lanes(),
                                         pass.problem_.value_dim * pass.lanes()}));
      buffer = carver.take<T>(std::max(rows, queries) * features);
      narrowed = carver.take<BFloat16>(queries);
    }
    T* keys;             // [row groups][features][group_rows]
    T* key_columns;      // [feature groups][rows][group_rows]
    T* values;           // [row groups][value_dim][group_rows], or pairs of numbers
    T* weights;          // [rows][queries of a block]: P
    T* grad_scores;      // [rows][queries of a block]: dP, then dS
    T* grad_features;    // [feature panels][rows][lanes]: dK / scale, of one object
    T* grad_values;      // [value panels][rows][lanes]
    T* grad_keys;        // [rows][key_dim], of all objects
    BFloat16* narrowed;  // [queries of a block]
    T* columns;  // of the gradient of the output: [value_dim][lanes] of a panel of queries, or [queries][lanes] of
                 // one of channels; of the features: [feature panels][queries][lanes]
    T* buffer;   // for features before packing
  };

  struct FeatureBuffer {
    FeatureBuffer(const BackwardPass& pass, Carver& carver) : feature(carver.take<T>(pass.scores_.features.dim())) {}
    T* feature;
  };

  Index lanes() const { return blocks_.lanes; }
  Index tile_stride() const { return blocks_.largest_block() * lanes(); }
  Index padded_rows() const { return round_up(rows_per_block, kernels_.group_rows); }
  Index slot_size() const { return blocks_.padded_queries() * padded_features_; }

  // A task processes one object if it has its own keys, all objects if they share keys: dK is summed over them.
  void plan() {
    const Index per_task = problem_.key_batches() == 1 ? problem_.objects : 1;
    for (Index object = 0; object < problem_.objects; object += per_task) {
      Index rows = 0;
      for (Index other = object; other < object + per_task; ++other) {
        rows = std::max(rows, problem_.rows_of(other));
      }
      const Index row_blocks = divide_up(rows, rows_per_block);
      const Index ranges = std::min(divide_up(parallel_.threads * per_task, problem_.objects), row_blocks);
      for (Index range = 0; range < ranges; ++range) {
        tasks_.push_back(
            {object, object + per_task, row_blocks * range / ranges, row_blocks * (range + 1) / ranges, slots_});
        slots_ += problem_.query_batches() == 1 ? 1 : per_task;
      }
    }
  }

  Index slot_of(const Task& task, Index object) const {
    return problem_.query_batches() == 1 ? 0 : object - task.object;
  }

  void run_task(const Task& task, const Workspace& work, T* grad_queries, T* grad_shrinkage) const {
    std::fill_n(grad_queries, (slot_of(task, task.object_end - 1) + 1) * slot_size(), T(0));
    for (Index block = task.begin; block < task.end; ++block) {
      const Index row = block * rows_per_block;
      std::fill_n(work.grad_keys, padded_rows() * problem_.key_dim, T(0));
      for (Index object = task.object; object < task.object_end; ++object) {
        const Index rows = std::min(rows_per_block, problem_.rows_of(object) - row);
        if (rows > 0) {
          pass_over_queries(object, row, rows, work, grad_queries + slot_of(task, object) * slot_size());
          write_values(object, row, rows, work);
          add_keys(object, row, rows, work, grad_shrinkage);
        }
      }
      const Index key_batch = problem_.key_batches() == 1 ? 0 : task.object;
      const Index first = (key_batch * problem_.rows + row) * problem_.key_dim;
      for (Index i = 0; i < std::min(rows_per_block, problem_.rows - row) * problem_.key_dim; ++i) {
        gradients_.key[first + i] = narrow<Stored>(work.grad_keys[i]);
      }
    }
  }

  // All queries of an object against one block of its rows.
  void pass_over_queries(Index object, Index row, Index rows, const Workspace& work, T* grad_queries) const {
    scores_.features.pack_keys(object, row, rows, kernels_.group_rows, work.buffer, work.keys, work.key_columns);
    with_element(true, [&]<class Element>(Element) {
      pack_panels(problem_.value[object].from_row(row), rows, problem_.value_dim, kernels_.group_rows,
                  reinterpret_cast<Element*>(work.values));
    });
    std::fill_n(work.grad_values, query_side_.wide_values() * padded_rows(), T(0));
    std::fill_n(work.grad_features, query_side_.wide_features() * padded_rows(), T(0));
    for (Index block = 0; block < blocks_.count; ++block) {
      const Index first = blocks_.first_panel(block), query = first * lanes();
      for (Index panel = first; panel < first + blocks_.panels_in(block); ++panel) {
        const Index column = (panel - first) * lanes();
        make_tiles(object, panel, row, rows, work, column);
        kernels_.add_product({padded_features_, rows, work.key_columns, 0, work.grad_scores + column, tile_stride(),
                              grad_queries + panel * lanes() * padded_features_, lanes()});
      }
      add_values_and_features(object, query, blocks_.queries_in_block(block), rows, work);
    }
  }

  // Adds the products with a block of queries, whose tiles are made.
  void add_values_and_features(Index object, Index query, Index queries, Index rows, const Workspace& work) const {
    with_element(true, [&]<class Element>(Element) {
      const Element* const tile = rows_of<Element>(work.weights, rows, queries, work);
      auto* const packed = reinterpret_cast<Element*>(work.columns);
      for (Index panel = 0; panel < query_side_.wide_values() / lanes(); ++panel) {
        add_queries(tile, query_side_.grad_out_rows(object, panel, query, queries, packed), queries, rows,
                    work.grad_values + panel * padded_rows() * lanes());
      }
    });
    with_element(scores_.features.are_stored(), [&]<class Element>(Element) {
      const Element* const tile = rows_of<Element>(work.grad_scores, rows, queries, work);
      query_side_.for_feature_rows(object, query, queries, work.buffer, reinterpret_cast<Element*>(work.columns),
                                   [&](Index panel, const auto& columns) {
                                     add_queries(tile, columns, queries, rows,
                                                 work.grad_features + panel * padded_rows() * lanes());
                                   });
    });
  }

  // Calls task(Element{}) for the type in which tensors are multiplied: pairs if they are `stored` as bfloat16 numbers
  // and the machine multiplies those by tiles of the shape of the other products, unlike the tiles of AMX.
  template <class Task>
  void with_element(bool stored, const Task& task) const {
    if constexpr (std::is_same_v<Stored, BFloat16>) {
      const auto* const pairs = pair_kernels();
      if (stored && pairs != nullptr && pairs->lanes == lanes() && pairs->group_rows == kernels_.group_rows) {
        return task(BFloat16Pair{});
      }
    }
    task(T{});
  }

  // A tile [rows][queries] as the factor of a sum over queries; of pairs, they replace the first half of each row.
  template <class Element>
  const Element* rows_of(T* tile, Index rows, Index queries, const Workspace& work) const {
    if constexpr (std::is_same_v<Element, BFloat16Pair>) {
      const Index count = round_up(queries, 2);  // the lane after an odd last query has a weight of 0
      for (Index j = 0; j < rows; ++j) {
        narrow_row(tile + j * tile_stride(), count, work.narrowed);
        std::memcpy(tile + j * tile_stride(), work.narrowed, count * sizeof(BFloat16));
      }
    }
    return reinterpret_cast<const Element*>(tile);
  }

  // P and dS of one panel of queries against the packed rows, at `column` of the tiles.
  void make_tiles(Index object, Index panel, Index row, Index rows, const Workspace& work, Index column) const {
    const Index stride = tile_stride(), value_dim = problem_.value_dim;
    T* weights = work.weights + column;
    T* grad_scores = work.grad_scores + column;
    weights_.tile(object, panel, row, rows, work.keys, weights, stride);
    with_element(true, [&]<class Element>(Element) {
      auto* const columns = reinterpret_cast<Element*>(work.columns);
      query_side_.pack_grad_out(object, panel, columns);
      kernels_of<Element>().scaled_product({rows, depth_of<Element>(value_dim), reinterpret_cast<Element*>(work.values),
                                            0, columns, lanes(), grad_scores, stride},
                                           T(1));
    });
    kernels_.softmax_backward(weights, grad_scores, rows, stride, query_side_.delta(object, panel));
  }

  // sums[row][lane] += sum over the queries of a block of tile[row][query] * columns[query][lane].
  template <class Element>
  void add_queries(const Element* tile, const typename QuerySide<Stored>::template Lanes<Element>& columns,
                   Index queries, Index rows, T* sums) const {
    kernels_of<Element>().add_product_of_rows({rows, depth_of<Element>(queries), tile, tile_stride(), columns.data,
                                               columns.stride, sums, lanes(), columns.unused});
  }

  // Row `row` of panels [panels][rows][lanes].
  template <class To>
  void copy_row(const T* panels, Index row, Index columns, To* to) const {
    for (Index first = 0; first < columns; first += lanes()) {
      const T* const from = panels + (first / lanes() * padded_rows() + row) * lanes();
      for (Index i = 0; i < std::min(lanes(), columns - first); ++i) {
        to[first + i] = narrow<To>(from[i]);
      }
    }
  }

  void write_values(Index object, Index row, Index rows, const Workspace& work) const {
    for (Index j = 0; j < rows; ++j) {
      copy_row(work.grad_values, j, problem_.value_dim,
               gradients_.value + (object * problem_.rows + row + j) * problem_.value_dim);
    }
  }

  void add_keys(Index object, Index row, Index rows, const Workspace& work, T* grad_shrinkage) const {
    const Index features = scores_.features.dim();
    T* const grad = work.buffer;
    for (Index j = 0; j < rows; ++j) {
      copy_row(work.grad_features, j, features, grad);
      for (Index f = 0; f < features; ++f) {
        grad[f] *= problem_.scale;
      }
      const T grad_of_shrinkage = scores_.features.backward_of_key(
          object, row + j, grad, work.grad_keys + j * problem_.key_dim, work.key_columns);
      if (problem_.shrinkage) {
        grad_shrinkage[object * problem_.rows + row + j] = grad_of_shrinkage;
      }
    }
  }

  // Adds the dQ of the tasks, in their order.
  void write_queries(Index batch, Index panel, const T* grad_queries, T* grad) const {
    const Index features = scores_.features.dim();
    for (Index i = 0; i < blocks_.queries_in_panel(panel); ++i) {
      std::fill_n(grad, features, T(0));
      for (const Task& task : tasks_) {
        if (problem_.query_batches() == 1 || (task.object <= batch && batch < task.object_end)) {
          const T* sums = grad_queries + (task.slot + slot_of(task, batch)) * slot_size();
          for (Index f = 0; f < features; ++f) {
            grad[f] += sums[(panel * padded_features_ + f) * lanes() + i];
          }
        }
      }
      for (Index f = 0; f < features; ++f) {
        grad[f] *= problem_.scale;
      }
      const Index query = panel * lanes() + i, at = (batch * problem_.queries + query) * problem_.key_dim;
      T* grad_selection = problem_.selection ? gradients_.selection + at : nullptr;
      scores_.features.backward_of_query(batch, query, grad, gradients_.query + at, grad_selection);
    }
  }

  // [B, N] to the shape of the input: the same, or summed over the objects.
  void write_shrinkage(const T* grad_shrinkage) const {
    const Index batches = problem_.shrinkage.shared ? 1 : problem_.objects;
    for (Index i = 0; i < problem_.objects * problem_.rows; ++i) {
      gradients_.shrinkage[i % (batches * problem_.rows)] += grad_shrinkage[i];
    }
  }

  const Scores<Stored>& scores_;
  const ReadProblem<Stored>& problem_;
  const TileKernels<T>& kernels_;
  const QueryBlocks& blocks_;
  const Parallel& parallel_;
  const ReadGradients<Stored>& gradients_;
  const SoftmaxWeights<Stored> weights_;
  const QuerySide<Stored> query_side_;
  Index padded_features_;
  std::vector<Task> tasks_;
  Index slots_ = 0;
};

}  // namespace

template <class Stored>
void memory_read_backward(const ReadProblem<Stored>& problem, const Parallel& parallel,
                          const ReadGradients<Stored>& gradients) {
  if (problem.objects > 0 && problem.queries > 0) {
    const TopK<Stored> top_k(problem, parallel);
    const Scores<Stored> scores(problem, top_k.thresholds());
    BackwardPass<Stored>(scores, parallel, gradients).run();
  }
}

template void memory_read_backward(const ReadProblem<float>&, const Parallel&, const ReadGradients<float>&);
template void memory_read_backward(const ReadProblem<double>&, const Parallel&, const ReadGradients<double>&);
template void memory_read_backward(const ReadProblem<BFloat16>&, const Parallel&, const ReadGradients<BFloat16>&);
template void memory_read_backward(const ReadProblem<Half>&, const Parallel&, const ReadGradients<Half>&);

}  // namespace stm_fast
