#include "stm_fast/kept_rows.h"

#include <vector>

#include "pass.h"
#include "stm_fast/pack.h"
#include "weighted_rows.h"

namespace stm_fast {

namespace {

constexpr Index block_size = 32;  // queries, or memory rows, of an item of work

template <class Stored>
struct Sums {
  Sums(const KeptProblem<Stored>& problem, Carver& carver)
      : sums(carver.take<Accumulator<Stored>>(problem.value_dim)) {}
  Accumulator<Stored>* sums;  // [value_dim]
};

// task(object, first, count, sums) for every block of `count` of `all` queries or memory rows, of every object.
template <class Stored, class Task>
void run_blocks(const KeptProblem<Stored>& problem, Index all, const Parallel& parallel, const Task& task) {
  const Index blocks = divide_up(all, block_size);
  run_items<Sums<Stored>>(problem, problem.objects * blocks, parallel, [&](Index item, const Sums<Stored>& work) {
    const Index first = item % blocks * block_size;
    task(item / blocks, first, std::min(block_size, all - first), work.sums);
  });
}

// The entries of queries from `first` on, as sum_rows() takes them.
template <class Stored>
auto entries_of(const KeptProblem<Stored>& problem, Index object, Index first) {
  return [&problem, rows = problem.kept_rows[object].from_row(first),
          weights = problem.weights[object].from_row(first)](Index query, const auto& add) {
    for (Index e = 0; e < problem.kept; ++e) {
      if (const Index row = rows.at(query, e); 0 <= row && row < problem.rows) {
        add(row, weights.at(query, e));
      }
    }
  };
}

// The entries of every memory row: those of row j are entries[first[j]] to entries[first[j + 1]], in order.
template <class T>
struct Inverse {
  struct Entry {
    Index query;
    T weight;
  };

  template <class Stored>
  Inverse(const KeptProblem<Stored>& problem, Index object) : first(problem.rows + 1, 0) {
    const auto each_entry = entries_of(problem, object, 0);
    const auto each = [&](const auto& visit) {
      for (Index query = 0; query < problem.queries; ++query) {
        each_entry(query, [&](Index row, T weight) { visit(row, Entry{query, weight}); });
      }
    };
    each([&](Index row, const Entry&) { ++first[row + 1]; });
    for (Index row = 0; row < problem.rows; ++row) {
      first[row + 1] += first[row];
    }
    entries.resize(first.back());
    std::vector<Index> next(first.begin(), first.end() - 1);
    each([&](Index row, const Entry& entry) { entries[next[row]++] = entry; });
  }

  std::vector<Index> first;
  std::vector<Entry> entries;
};

template <class Stored>
Accumulator<Stored> product(const Matrix<const Stored>& left, Index i, const Matrix<const Stored>& right, Index j,
                            Index channels) {
  Accumulator<Stored> sum = 0;
  for (Index c = 0; c < channels; ++c) {
    sum += widen(left.at(i, c)) * widen(right.at(j, c));
  }
  return sum;
}

template <class Stored>
void make_grad_weights(const KeptProblem<Stored>& problem, const Parallel& parallel,
                       const Batch<const Stored>& grad_out, Accumulator<Stored>* grad_weights) {
  parallel.run(problem.weight_batches() * problem.queries, [&](Index item) {
    const Index batch = item / problem.queries, query = item % problem.queries;
    const Index last = problem.weights.shared ? problem.objects : batch + 1;
    for (Index e = 0; e < problem.kept; ++e) {
      Accumulator<Stored>& total = grad_weights[item * problem.kept + e];
      total = 0;
      const Index row = problem.kept_rows[batch].at(query, e);
      for (Index object = batch; object < last && 0 <= row && row < problem.rows; ++object) {
        total += product(grad_out[object], query, problem.value[object], row, problem.value_dim);
      }
    }
  });
}

template <class Stored>
void read_in_place(const KeptProblem<Stored>& problem, const Parallel& parallel, Stored* out) {
  run_blocks(problem, problem.queries, parallel, [&](Index object, Index first, Index queries, auto* sums) {
    sum_rows(problem.value[object], problem.value_dim, queries, entries_of(problem, object, first), sums,
             out + (object * problem.queries + first) * problem.value_dim, problem.value_dim);
  });
}

// Some channels of all memory rows of an object, copied so that those of a row are contiguous: a row is then one or a
// few cache lines, where its numbers would be in one line each.
template <class Stored>
class ValueCopies {
  using T = Accumulator<Stored>;

 public:
  ValueCopies(const KeptProblem<Stored>& problem, Index threads) : problem(problem) {
    constexpr Index least = 16, most_bytes = 8 << 20;  // a cache line, and about a thread's share of the L3 cache
    while (channels > least && (problem.rows * channels * static_cast<Index>(sizeof(T)) > most_bytes ||
                                problem.objects * parts() < threads)) {
      channels /= 2;
    }
  }
  Index parts() const { return divide_up(problem.value_dim, channels); }

  struct Workspace {
    Workspace(const ValueCopies& copies, Carver& carver)
        : values(carver.take<T>(copies.problem.rows * copies.channels)), sums(carver.take<T>(copies.channels)) {}
    T* values;  // [rows][channels]
    T* sums;    // [channels]
  };

  const KeptProblem<Stored>& problem;
  Index channels = 64;
};

template <class Stored>
void read_copies(const KeptProblem<Stored>& problem, const Parallel& parallel, Stored* out) {
  using T = Accumulator<Stored>;
  using Copies = ValueCopies<Stored>;
  const Copies copies(problem, parallel.threads);
  const auto read_part = [&](Index item, const typename Copies::Workspace& work) {
    const Index object = item / copies.parts(), channel = item % copies.parts() * copies.channels;
    const Index channels = std::min(copies.channels, problem.value_dim - channel);
    pack_panels(problem.value[object].transposed().from_row(channel), channels, problem.rows, copies.channels,
                work.values);
    sum_rows(Matrix<const T>{work.values, copies.channels, 1}, channels, problem.queries,
             entries_of(problem, object, 0), work.sums, out + object * problem.queries * problem.value_dim + channel,
             problem.value_dim);
  };
  run_items<typename Copies::Workspace>(copies, problem.objects * copies.parts(), parallel, read_part);
}

// Whether the values of a channel are contiguous, and few enough in comparison to the entries to copy all of them.
template <class Stored>
bool copies_values(const KeptProblem<Stored>& problem) {
  const Matrix<const Stored> value = problem.value[0];
  return value.row_stride < value.column_stride && problem.rows <= problem.queries * problem.kept;
}

}  // namespace

template <class Stored>
void read_rows(const KeptProblem<Stored>& problem, const Parallel& parallel, Stored* out) {
  if (copies_values(problem)) {
    read_copies(problem, parallel, out);
  } else {
    read_in_place(problem, parallel, out);
  }
}

template <class Stored>
void read_rows_backward(const KeptProblem<Stored>& problem, const Parallel& parallel,
                        const Batch<const Stored>& grad_out, Accumulator<Stored>* grad_weights, Stored* grad_value) {
  using T = Accumulator<Stored>;
  make_grad_weights(problem, parallel, grad_out, grad_weights);
  std::vector<Inverse<T>> inverses;
  for (Index batch = 0; batch < problem.weight_batches(); ++batch) {
    inverses.emplace_back(problem, batch);
  }
  run_blocks(problem, problem.rows, parallel, [&](Index object, Index first, Index rows, T* sums) {
    const Inverse<T>& inverse = inverses[problem.weights.shared ? 0 : object];
    const auto each_entry = [&](Index row, const auto& add) {
      for (Index at = inverse.first[first + row]; at < inverse.first[first + row + 1]; ++at) {
        add(inverse.entries[at].query, inverse.entries[at].weight);
      }
    };
    sum_rows(grad_out[object], problem.value_dim, rows, each_entry, sums,
             grad_value + (object * problem.rows + first) * problem.value_dim, problem.value_dim);
  });
}

#define STM_FAST_INSTANTIATE(Stored)                                                                        \
  template void read_rows(const KeptProblem<Stored>&, const Parallel&, Stored*);                            \
  template void read_rows_backward(const KeptProblem<Stored>&, const Parallel&, const Batch<const Stored>&, \
                                   Accumulator<Stored>*, Stored*);
STM_FAST_INSTANTIATE(float)
STM_FAST_INSTANTIATE(double)
STM_FAST_INSTANTIATE(BFloat16)
STM_FAST_INSTANTIATE(Half)

}  // namespace stm_fast
