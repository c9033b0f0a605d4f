// The forward read: blocks of queries pass over blocks of memory rows with a running softmax (FlashAttention's loop
// order, Dao et al. 2022, algorithm 1, with queries in SIMD lanes). Queries few, the memory is shared out between
// threads, and the parts are joined exactly.
#include <cmath>
#include <limits>

#include "blocks.h"
#include "schedule.h"
#include "stm_fast/memory_read.h"
#include "stm_fast/pack.h"
#include "stm_fast/scratch.h"

namespace stm_fast {

namespace {

// What a block of queries has read so far, by panel.
template <class T>
struct Partial {
  T* sums;     // [panels][value_dim padded][lanes], relative to `largest`
  T* largest;  // [panels][lanes]
  T* total;    // [panels][lanes]
};

// What is written, [B, M, ...] each; null where it is not wanted.
template <class Stored>
struct Results {
  Stored* out = nullptr;
  Accumulator<Stored>* lse = nullptr;
  Accumulator<Stored>* largest = nullptr;
  Accumulator<Stored>* factor = nullptr;
};

template <class Stored>
class Forward {
  using T = Accumulator<Stored>;

 public:
  Forward(const ReadProblem<Stored>& problem, const Parallel& parallel, const Results<Stored>& results)
      : problem_(problem),
        parallel_(parallel),
        kernels_(tile_kernels<T>()),
        blocks_(problem.queries, kernels_),
        schedule_(row_blocks(problem), blocks_.count, parallel.threads),
        padded_value_dim_(round_up(problem.value_dim, kernels_.group_rows)),
        results_(results) {}

  void run() {
    const Index workspace = Workspace(*this, nullptr).used;
    const Index partial = PartialBlock(*this, nullptr).used;
    // a share leaves at most two groups unfinished: its first and its last
    const Scratch<T> scratch(schedule_.shares() * (workspace + 2 * partial));
    T* partials = scratch.get() + schedule_.shares() * workspace;
    const auto kept = [&](Index share, bool first) {
      return PartialBlock(*this, partials + (2 * share + (first ? 0 : 1)) * partial).partial;
    };
    parallel_.run(schedule_.shares(), [&](Index share) {
      const Workspace work(*this, scratch.get() + share * workspace);
      bool first = true;
      for (const Segment& segment : schedule_.segments(share)) {
        const Partial<T> result = segment.whole() ? work.partial : kept(share, first);
        read(segment, work, result);
        if (segment.whole()) {
          write(segment, result);
        }
        first = false;
      }
    });
    parallel_.run(schedule_.shares(), [&](Index share) { join(share, kept); });
  }

 private:
  struct PartialBlock {
    PartialBlock(const Forward& read, T* block) {
      Carver<T> carver(block);
      const Index queries = read.blocks_.largest_block() * read.kernels_.lanes;
      partial = {carver.take(queries * read.padded_value_dim_), carver.take(queries), carver.take(queries)};
      used = carver.used();
    }
    Partial<T> partial;
    Index used;
  };

  // What one thread needs.
  struct Workspace {
    Workspace(const Forward& read, T* block) {
      Carver<T> carver(block);
      const Index lanes = read.kernels_.lanes, padded_rows = round_up(rows_per_block, read.kernels_.group_rows);
      query = carver.take(read.blocks_.largest_block() * lanes * read.problem_.key_dim);
      key = carver.take(padded_rows * read.problem_.key_dim);
      value = carver.take(read.padded_value_dim_ * rows_per_block);
      scores = carver.take(padded_rows * lanes);
      rescale = carver.take(lanes);
      T* rest = carver.take(PartialBlock(read, nullptr).used);
      partial = PartialBlock(read, rest).partial;
      used = carver.used();
    }
    T* query;    // [panels][key_dim][lanes]
    T* key;      // [row groups][key_dim][group_rows]
    T* value;    // [channel groups][rows][group_rows]
    T* scores;   // [rows][lanes]
    T* rescale;  // [lanes]
    Partial<T> partial;
    Index used;
  };

  static std::vector<Index> row_blocks(const ReadProblem<Stored>& problem) {
    std::vector<Index> blocks;
    for (Index object = 0; object < problem.objects && problem.queries > 0; ++object) {
      blocks.push_back(std::max<Index>(1, divide_up(problem.rows_of(object), rows_per_block)));
    }
    return blocks;
  }

  // The memory rows of a segment, read by its queries into `result`.
  void read(const Segment& segment, const Workspace& work, const Partial<T>& result) const {
    const Index lanes = kernels_.lanes, key_dim = problem_.key_dim;
    const Index panels = blocks_.panels_in(segment.query_block), first = blocks_.first_panel(segment.query_block);
    const Index queries = std::min(panels * lanes, problem_.queries - first * lanes);
    pack_panels(problem_.query[segment.object].from_row(first * lanes), queries, key_dim, lanes, work.query);
    std::fill_n(result.sums, panels * padded_value_dim_ * lanes, T(0));
    std::fill_n(result.largest, panels * lanes, -std::numeric_limits<T>::infinity());
    std::fill_n(result.total, panels * lanes, T(0));

    const Index end = std::min(problem_.rows_of(segment.object), segment.end * rows_per_block);
    for (Index row = segment.begin * rows_per_block; row < end; row += rows_per_block) {
      const Index rows = std::min(rows_per_block, end - row);
      pack_panels(problem_.key[segment.object].from_row(row), rows, key_dim, kernels_.group_rows, work.key);
      pack_panels(problem_.value[segment.object].from_row(row).transposed(), problem_.value_dim, rows,
                  kernels_.group_rows, work.value);
      for (Index panel = 0; panel < panels; ++panel) {
        read_block(work, rows, panel, result);
      }
    }
  }

  void read_block(const Workspace& work, Index rows, Index panel, const Partial<T>& result) const {
    const Index lanes = kernels_.lanes, key_dim = problem_.key_dim;
    const T* query = work.query + panel * key_dim * lanes;
    T* sums = result.sums + panel * padded_value_dim_ * lanes;
    kernels_.scaled_product({rows, key_dim, work.key, 0, query, lanes, work.scores, lanes}, problem_.scale);
    kernels_.softmax_step(work.scores, rows, lanes,
                          {result.largest + panel * lanes, result.total + panel * lanes, work.rescale});
    kernels_.rescale_and_add_product({padded_value_dim_, rows, work.value, 0, work.scores, lanes, sums, lanes},
                                     work.rescale);
  }

  // Finishes the group that begins in this share and goes on in the next.
  template <class Kept>
  void join(Index share, const Kept& kept) const {
    const std::vector<Segment>& segments = schedule_.segments(share);
    const Segment& group = segments.back();
    if (!group.starts_group() || group.ends_group()) {
      return;
    }
    const Partial<T> whole = kept(share, segments.size() == 1);
    for (Index next = share + 1;; ++next) {
      add(group, kept(next, true), whole);
      if (schedule_.segments(next).front().ends_group()) {
        break;
      }
    }
    write(group, whole);
  }

  // whole += part, both relative to their own largest score.
  void add(const Segment& segment, const Partial<T>& part, const Partial<T>& whole) const {
    const Index lanes = kernels_.lanes;
    for (Index i = 0; i < blocks_.panels_in(segment.query_block) * lanes; ++i) {
      const T largest = std::max(whole.largest[i], part.largest[i]);
      const T shift = largest == -std::numeric_limits<T>::infinity() ? T(0) : largest;
      const T old_scale = std::exp(whole.largest[i] - shift), new_scale = std::exp(part.largest[i] - shift);
      whole.largest[i] = largest;
      whole.total[i] = old_scale * whole.total[i] + new_scale * part.total[i];
      const Index first = i / lanes * padded_value_dim_ * lanes + i % lanes;
      for (Index c = 0; c < problem_.value_dim; ++c) {
        const Index at = first + c * lanes;
        whole.sums[at] = old_scale * whole.sums[at] + new_scale * part.sums[at];
      }
    }
  }

  // Divides by the total and writes the results; a query that nothing counts for has a total of 0.
  void write(const Segment& segment, const Partial<T>& result) const {
    const Index lanes = kernels_.lanes, first = blocks_.first_panel(segment.query_block);
    for (Index panel = 0; panel < blocks_.panels_in(segment.query_block); ++panel) {
      const Index query = segment.object * problem_.queries + (first + panel) * lanes;
      const T* sums = result.sums + panel * padded_value_dim_ * lanes;
      for (Index i = 0; i < blocks_.queries_in(first + panel); ++i) {
        const T total = result.total[panel * lanes + i], largest = result.largest[panel * lanes + i];
        const bool empty = total == T(0);
        const T factor = empty ? T(0) : T(1) / total;
        if (results_.largest != nullptr) {
          results_.largest[query + i] = empty ? std::numeric_limits<T>::infinity() : largest;
          results_.factor[query + i] = factor;
          continue;
        }
        results_.lse[query + i] = largest + std::log(total);
        Stored* out = results_.out + (query + i) * problem_.value_dim;
        for (Index c = 0; c < problem_.value_dim; ++c) {
          out[c] = narrow<Stored>(sums[c * lanes + i] * factor);
        }
      }
    }
  }

  const ReadProblem<Stored>& problem_;
  const Parallel& parallel_;
  const TileKernels<T>& kernels_;
  QueryBlocks blocks_;
  Schedule schedule_;
  Index padded_value_dim_;
  Results<Stored> results_;
};

}  // namespace

template <class Stored>
void memory_read(const ReadProblem<Stored>& problem, const Parallel& parallel, Stored* out, Accumulator<Stored>* lse) {
  if (problem.objects > 0 && problem.queries > 0) {
    Forward<Stored>(problem, parallel, {.out = out, .lse = lse}).run();
  }
}

template <class Stored>
void softmax_statistics(const ReadProblem<Stored>& problem, const Parallel& parallel, Accumulator<Stored>* largest,
                        Accumulator<Stored>* factor) {
  ReadProblem<Stored> without_values = problem;
  without_values.value_dim = 0;
  Forward<Stored>(without_values, parallel, {.largest = largest, .factor = factor}).run();
}

#define STM_FAST_INSTANTIATE(Stored)                                                                     \
  template void memory_read(const ReadProblem<Stored>&, const Parallel&, Stored*, Accumulator<Stored>*); \
  template void softmax_statistics(const ReadProblem<Stored>&, const Parallel&, Accumulator<Stored>*,    \
                                   Accumulator<Stored>*);
STM_FAST_INSTANTIATE(float)
STM_FAST_INSTANTIATE(double)
STM_FAST_INSTANTIATE(BFloat16)

}  // namespace stm_fast
