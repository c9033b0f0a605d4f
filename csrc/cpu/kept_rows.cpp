#include "stm_fast/kept_rows.h"

#include <vector>

#include "pass.h"
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

// The entries of every memory row: those of row j are entries[first[j]] to entries[first[j + 1]], in order.
template <class T>
struct Inverse {
  struct Entry {
    Index query;
    T weight;
  };

  template <class Stored>
  Inverse(const KeptProblem<Stored>& problem, Index object) : first(problem.rows + 1, 0) {
    const auto rows = problem.kept_rows[object];
    const auto weights = problem.weights[object];
    const auto each = [&](const auto& visit) {
      for (Index i = 0; i < problem.queries; ++i) {
        for (Index e = 0; e < problem.kept; ++e) {
          if (const Index row = rows.at(i, e); 0 <= row && row < problem.rows) {
            visit(row, Entry{i, weights.at(i, e)});
          }
        }
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
  const Index batches = problem.weights.shared ? 1 : problem.objects;
  parallel.run(batches * problem.queries, [&](Index item) {
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

}  // namespace

template <class Stored>
void read_rows(const KeptProblem<Stored>& problem, const Parallel& parallel, Stored* out) {
  using T = Accumulator<Stored>;
  run_blocks(problem, problem.queries, parallel, [&](Index object, Index first, Index queries, T* sums) {
    const auto rows = problem.kept_rows[object].from_row(first);
    const auto weights = problem.weights[object].from_row(first);
    const auto each_entry = [&](Index query, const auto& add) {
      for (Index e = 0; e < problem.kept; ++e) {
        if (const Index row = rows.at(query, e); 0 <= row && row < problem.rows) {
          add(row, weights.at(query, e));
        }
      }
    };
    sum_rows<Stored>(problem.value[object], problem.value_dim, queries, each_entry, sums,
                     out + (object * problem.queries + first) * problem.value_dim);
  });
}

template <class Stored>
void read_rows_backward(const KeptProblem<Stored>& problem, const Parallel& parallel,
                        const Batch<const Stored>& grad_out, Accumulator<Stored>* grad_weights, Stored* grad_value) {
  using T = Accumulator<Stored>;
  make_grad_weights(problem, parallel, grad_out, grad_weights);
  std::vector<Inverse<T>> inverses;
  for (Index object = 0; object < (problem.weights.shared ? std::min<Index>(1, problem.objects) : problem.objects);
       ++object) {
    inverses.emplace_back(problem, object);
  }
  run_blocks(problem, problem.rows, parallel, [&](Index object, Index first, Index rows, T* sums) {
    const Inverse<T>& inverse = inverses[problem.weights.shared ? 0 : object];
    const auto each_entry = [&](Index row, const auto& add) {
      for (Index at = inverse.first[first + row]; at < inverse.first[first + row + 1]; ++at) {
        add(inverse.entries[at].query, inverse.entries[at].weight);
      }
    };
    sum_rows<Stored>(grad_out[object], problem.value_dim, rows, each_entry, sums,
                     grad_value + (object * problem.rows + first) * problem.value_dim);
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
