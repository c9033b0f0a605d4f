// The rows of a top-k read: each query keeps the k best so far in a heap while it passes over the memory. The worst of
// them is its threshold.
#include <cmath>
#include <limits>

#include "pass.h"
#include "passes.h"

namespace stm_fast {

namespace {

template <class T>
struct Row {
  T score;  // later its weight
  Index index;
};

// The k best rows of one query as a heap with the worst of them at the root; at equal scores the higher index is worse,
// and no score is better than NaN.
template <class T>
class Best {
 public:
  Best(Row<T>* rows, Index* count, Index k) : rows_(rows), count_(*count), k_(k) {}

  bool full() const { return count_ == k_; }
  const Row<T>& worst() const { return rows_[0]; }
  Row<T>* begin() const { return rows_; }
  Row<T>* end() const { return rows_ + count_; }

  void offer(const Row<T>& row) {
    if (!full()) {
      rise(count_++, row);
    } else if (worse(rows_[0], row)) {
      sink(row);
    }
  }

 private:
  static bool worse(const Row<T>& row, const Row<T>& other) {
    const bool equal = row.score == other.score || (std::isnan(row.score) && std::isnan(other.score));
    return equal ? row.index > other.index : row.score < other.score || std::isnan(other.score);
  }

  void rise(Index at, const Row<T>& row) {
    while (at > 0) {
      const Index parent = (at - 1) / 2;
      if (!worse(row, rows_[parent])) {
        break;
      }
      rows_[at] = rows_[parent];
      at = parent;
    }
    rows_[at] = row;
  }

  void sink(const Row<T>& row) {
    Index at = 0;
    for (Index child = 1; child < k_; child = 2 * at + 1) {
      if (child + 1 < k_ && worse(rows_[child + 1], rows_[child])) {
        ++child;
      }
      if (!worse(rows_[child], row)) {
        break;
      }
      rows_[at] = rows_[child];
      at = child;
    }
    rows_[at] = row;
  }

  Row<T>* rows_;
  Index& count_;
  Index k_;
};

// Turns scores into softmax weights, in the order of their rows, however they were found; returns lse, -inf without
// rows.
template <class T>
T make_weights(const Best<T>& best) {
  std::sort(best.begin(), best.end(), [](const Row<T>& row, const Row<T>& other) { return row.index < other.index; });
  T largest = -std::numeric_limits<T>::infinity();
  for (const Row<T>& row : best) {
    largest = std::max(largest, row.score);
  }
  const T shift = std::isfinite(largest) ? largest : T(0);
  T total = 0;
  for (Row<T>& row : best) {
    row.score = std::exp(row.score - shift);
    total += row.score;
  }
  for (Row<T>& row : best) {
    row.score = total == T(0) ? T(0) : row.score / total;
  }
  return shift + std::log(total);
}

template <class Stored>
class TopKPass {
  using T = Accumulator<Stored>;

 public:
  TopKPass(const Scores<Stored>& scores, const Affinities& affinities, T* threshold, Index* last,
           const KeptRows<T>& kept, T* lse)
      : scores_(scores),
        problem_(scores.problem),
        blocks_(scores.blocks),
        affinities_(affinities),
        k_(problem_.top_k),
        threshold_(threshold),
        last_(last),
        kept_(kept),
        lse_(lse) {}

  struct Workspace {
    Workspace(const TopKPass& pass, Carver& carver) {
      const Index features = pass.scores_.features.dim(), queries = pass.block_queries();
      const Index rows = round_up(rows_per_block, pass.scores_.kernels.group_rows);
      query = carver.take<T>(queries * features);
      keys = carver.take<T>(rows * features);
      scores = carver.take<T>(rows * pass.blocks_.lanes);
      buffer = carver.take<T>(std::max(queries, rows_per_block) * features);
    }
    T* query;   // [panels][features][lanes]
    T* keys;    // [row groups][features][group_rows]
    T* scores;  // [rows][lanes]
    T* buffer;  // for features before packing
  };

  struct Partial {
    Partial(const TopKPass& pass, Carver& carver)
        : rows(carver.take<Row<T>>(pass.block_queries() * pass.k_)),
          counts(carver.take<Index>(pass.block_queries())),
          k(pass.k_) {}

    Best<T> best(Index query) const { return Best<T>(rows + query * k, counts + query, k); }

    Row<T>* rows;   // [queries of a block][k]
    Index* counts;  // [queries of a block]
    Index k;
  };

  void read(const Segment& segment, const Workspace& work, const Partial& result) const {
    const Index object = affinities_.first_object(segment.affinity);
    const Index first = blocks_.first_panel(segment.query_block),
                queries = blocks_.queries_in_block(segment.query_block);
    scores_.features.pack_queries(object, first * blocks_.lanes, queries, blocks_.lanes, work.buffer, work.query);
    std::fill_n(result.counts, queries, Index(0));
    const Index end = std::min(problem_.rows_of(object), segment.end * rows_per_block);
    for (Index row = segment.begin * rows_per_block; row < end; row += rows_per_block) {
      const Index rows = std::min(rows_per_block, end - row);
      scores_.features.pack_keys(object, row, rows, scores_.kernels.group_rows, work.buffer, work.keys);
      for (Index panel = 0; panel < blocks_.panels_in(segment.query_block); ++panel) {
        const T* query = work.query + panel * scores_.features.dim() * blocks_.lanes;
        scores_.tile(object, first + panel, row, rows, work.keys, query, work.scores, blocks_.lanes);
        for (Index i = 0; i < blocks_.queries_in_panel(first + panel); ++i) {
          offer_column(work.scores + i, row, rows, result.best(panel * blocks_.lanes + i));
        }
      }
    }
  }

  void add(const Segment& segment, const Partial& part, const Partial& whole) const {
    for (Index query = 0; query < blocks_.queries_in_block(segment.query_block); ++query) {
      Best<T> best = whole.best(query);
      for (const Row<T>& row : part.best(query)) {
        best.offer(row);
      }
    }
  }

  void write(const Segment& segment, const Workspace& /*work*/, const Partial& result) const {
    const Index first = blocks_.first_panel(segment.query_block) * blocks_.lanes;
    const Index object = affinities_.first_object(segment.affinity), objects = affinities_.objects_of(segment.affinity);
    for (Index query = 0; query < blocks_.queries_in_block(segment.query_block); ++query) {
      const Best<T> best = result.best(query);
      // fewer rows than k: all of them are selected
      const T threshold = best.full() ? best.worst().score : -std::numeric_limits<T>::infinity();
      const Index last = best.full() ? best.worst().index : problem_.rows;
      const T lse = keeps() ? make_weights(best) : T(0);
      for (Index other = object; other < object + objects; ++other) {
        threshold_[other * blocks_.padded_queries() + first + query] = threshold;
        last_[other * blocks_.padded_queries() + first + query] = last;
        if (keeps()) {
          const Index at = other * problem_.queries + first + query;
          keep(best, at);
          lse_[at] = lse;
        }
      }
    }
  }

 private:
  bool keeps() const { return kept_.rows != nullptr; }
  Index block_queries() const { return blocks_.largest_block() * blocks_.lanes; }

  void offer_column(const T* scores, Index row, Index rows, Best<T> best) const {
    Index j = 0;
    for (; j < rows && !best.full(); ++j) {
      best.offer({scores[j * blocks_.lanes], row + j});
    }
    // rows come in order of their index: at a tie the earlier one is kept
    for (; j < rows; ++j) {
      const T score = scores[j * blocks_.lanes];
      if (!(score <= best.worst().score)) {
        best.offer({score, row + j});
      }
    }
  }

  // Writes the weights of query number `at` and their rows.
  void keep(const Best<T>& best, Index at) const {
    T* weights = kept_.weights + at * k_;
    std::int64_t* rows = kept_.rows + at * k_;
    std::fill_n(weights, k_, T(0));
    std::fill_n(rows, k_, -1);
    for (const Row<T>& row : best) {
      *weights++ = row.score;
      *rows++ = row.index;
    }
  }

  const Scores<Stored>& scores_;
  const ReadProblem<Stored>& problem_;
  const QueryBlocks& blocks_;
  const Affinities affinities_;
  Index k_;
  T* threshold_;
  Index* last_;
  KeptRows<T> kept_;
  T* lse_;
};

}  // namespace

template <class Stored>
TopK<Stored>::TopK(const ReadProblem<Stored>& problem, const Parallel& parallel,
                   const KeptRows<Accumulator<Stored>>& kept, Accumulator<Stored>* lse)
    : scratch_(0) {
  if (!problem.is_sparse()) {
    return;
  }
  using T = Accumulator<Stored>;
  const Scores<Stored> scores(problem);
  const Index count = problem.objects * scores.blocks.padded_queries();
  scratch_ =
      Scratch(round_up(count * static_cast<Index>(sizeof(T)), cache_line) + count * static_cast<Index>(sizeof(Index)));
  Carver carver(scratch_.get());
  T* threshold = carver.take<T>(count);
  Index* last = carver.take<Index>(count);
  // lanes without a query select nothing
  std::fill_n(threshold, count, std::numeric_limits<T>::infinity());
  std::fill_n(last, count, Index(-1));
  const Affinities affinities(problem, problem.objects);
  const Schedule schedule = schedule_of(problem, affinities, scores.blocks.count, parallel.threads);
  run_pass(TopKPass<Stored>(scores, affinities, threshold, last, kept, lse), schedule, parallel);
  thresholds_ = {threshold, last};
}

template class TopK<float>;
template class TopK<double>;
template class TopK<BFloat16>;
template class TopK<Half>;
template class TopK<Int8>;
template class TopK<Float8>;

}  // namespace stm_fast
