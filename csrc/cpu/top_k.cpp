// The thresholds of a top-k read: each query keeps the k best rows it has met in a heap while it passes over the
// memory.
#include <limits>

#include "pass.h"
#include "passes.h"

namespace stm_fast {

namespace {

// The k best rows of one query as a heap with the worst of them at the root; at equal scores the higher index is worse.
template <class T>
class Best {
 public:
  Best(T* scores, Index* indices, Index* count, Index k) : scores_(scores), indices_(indices), count_(*count), k_(k) {}

  bool full() const { return count_ == k_; }
  T worst_score() const { return scores_[0]; }
  Index worst_index() const { return indices_[0]; }
  Index count() const { return count_; }
  T score(Index i) const { return scores_[i]; }
  Index index(Index i) const { return indices_[i]; }

  void offer(T score, Index index) {
    if (!full()) {
      rise(count_++, score, index);
    } else if (worse(scores_[0], indices_[0], score, index)) {
      sink(score, index);
    }
  }

 private:
  static bool worse(T score, Index index, T other, Index other_index) {
    return score < other || (score == other && index > other_index);
  }

  void rise(Index at, T score, Index index) {
    while (at > 0) {
      const Index parent = (at - 1) / 2;
      if (!worse(score, index, scores_[parent], indices_[parent])) {
        break;
      }
      set(at, scores_[parent], indices_[parent]);
      at = parent;
    }
    set(at, score, index);
  }

  void sink(T score, Index index) {
    Index at = 0;
    for (Index child = 1; child < k_; child = 2 * at + 1) {
      if (child + 1 < k_ && worse(scores_[child + 1], indices_[child + 1], scores_[child], indices_[child])) {
        ++child;
      }
      if (!worse(scores_[child], indices_[child], score, index)) {
        break;
      }
      set(at, scores_[child], indices_[child]);
      at = child;
    }
    set(at, score, index);
  }

  void set(Index at, T score, Index index) {
    scores_[at] = score;
    indices_[at] = index;
  }

  T* scores_;
  Index* indices_;
  Index& count_;
  Index k_;
};

template <class Stored>
class TopKPass {
  using T = Accumulator<Stored>;

 public:
  TopKPass(const Scores<Stored>& scores, T* threshold, Index* last)
      : scores_(scores), blocks_(scores.blocks), k_(scores.problem.top_k), threshold_(threshold), last_(last) {}

  struct Workspace {
    Workspace(const TopKPass& pass, Carver& carver) {
      const Index features = pass.scores_.features.dim(), queries = pass.block_queries();
      const Index rows = round_up(rows_per_block, pass.scores_.kernels.group_rows);
      query = carver.take<T>(queries * features);
      keys = carver.take<T>(rows * features);
      scores = carver.take<T>(rows * pass.blocks_.lanes);
      room = carver.take<T>(std::max(queries, rows_per_block) * features);
    }
    T* query;   // [panels][features][lanes]
    T* keys;    // [row groups][features][group_rows]
    T* scores;  // [rows][lanes]
    T* room;    // for features that are not yet packed
  };

  struct Partial {
    Partial(const TopKPass& pass, Carver& carver)
        : scores(carver.take<T>(pass.block_queries() * pass.k_)),
          indices(carver.take<Index>(pass.block_queries() * pass.k_)),
          counts(carver.take<Index>(pass.block_queries())),
          k(pass.k_) {}

    Best<T> best(Index query) const { return Best<T>(scores + query * k, indices + query * k, counts + query, k); }

    T* scores;       // [queries of a block][k]
    Index* indices;  // [queries of a block][k]
    Index* counts;   // [queries of a block]
    Index k;
  };

  void read(const Segment& segment, const Workspace& work, const Partial& result) const {
    const Index first = blocks_.first_panel(segment.query_block),
                queries = blocks_.queries_in_block(segment.query_block);
    scores_.features.pack_queries(segment.object, first * blocks_.lanes, queries, blocks_.lanes, work.room, work.query);
    std::fill_n(result.counts, queries, Index(0));
    const Index end = std::min(scores_.problem.rows_of(segment.object), segment.end * rows_per_block);
    for (Index row = segment.begin * rows_per_block; row < end; row += rows_per_block) {
      const Index rows = std::min(rows_per_block, end - row);
      scores_.features.pack_keys(segment.object, row, rows, scores_.kernels.group_rows, work.room, work.keys);
      for (Index panel = 0; panel < blocks_.panels_in(segment.query_block); ++panel) {
        const T* query = work.query + panel * scores_.features.dim() * blocks_.lanes;
        scores_.tile(segment.object, first + panel, row, rows, work.keys, query, work.scores, blocks_.lanes);
        for (Index i = 0; i < blocks_.queries_in_panel(first + panel); ++i) {
          offer_column(work.scores + i, row, rows, result.best(panel * blocks_.lanes + i));
        }
      }
    }
  }

  void add(const Segment& segment, const Partial& part, const Partial& whole) const {
    for (Index query = 0; query < blocks_.queries_in_block(segment.query_block); ++query) {
      Best<T> best = whole.best(query);
      const Best<T> others = part.best(query);
      for (Index i = 0; i < others.count(); ++i) {
        best.offer(others.score(i), others.index(i));
      }
    }
  }

  void write(const Segment& segment, const Partial& result) const {
    const Index first =
        segment.object * blocks_.padded_queries() + blocks_.first_panel(segment.query_block) * blocks_.lanes;
    for (Index query = 0; query < blocks_.queries_in_block(segment.query_block); ++query) {
      const Best<T> best = result.best(query);
      // fewer rows than k: all of them are taken
      threshold_[first + query] = best.full() ? best.worst_score() : -std::numeric_limits<T>::infinity();
      last_[first + query] = best.full() ? best.worst_index() : scores_.problem.rows;
    }
  }

 private:
  Index block_queries() const { return blocks_.largest_block() * blocks_.lanes; }

  void offer_column(const T* scores, Index row, Index rows, Best<T> best) const {
    Index j = 0;
    for (; j < rows && !best.full(); ++j) {
      best.offer(scores[j * blocks_.lanes], row + j);
    }
    // rows come in order of their index: at a tie the one that is there stays
    for (; j < rows; ++j) {
      const T score = scores[j * blocks_.lanes];
      if (!(score <= best.worst_score())) {
        best.offer(score, row + j);
      }
    }
  }

  const Scores<Stored>& scores_;
  const QueryBlocks& blocks_;
  Index k_;
  T* threshold_;
  Index* last_;
};

}  // namespace

template <class Stored>
TopK<Stored>::TopK(const ReadProblem<Stored>& problem, const Parallel& parallel) : scratch_(0) {
  if (problem.top_k == 0 || problem.top_k >= problem.rows) {
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
  // the lanes beyond the queries take nothing
  std::fill_n(threshold, count, std::numeric_limits<T>::infinity());
  std::fill_n(last, count, Index(-1));
  const Schedule schedule = schedule_of(problem, scores.blocks.count, rows_per_block, parallel.threads);
  run_pass(TopKPass<Stored>(scores, threshold, last), schedule, parallel);
  thresholds_ = {threshold, last};
}

template class TopK<float>;
template class TopK<double>;
template class TopK<BFloat16>;
template class TopK<Half>;
template class TopK<Int8>;
template class TopK<Float8>;

}  // namespace stm_fast
