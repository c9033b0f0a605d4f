// The backward read: every gradient in one pass over the memory, the affinity made again block by block (Dao et al.
// 2022, algorithm 4). With P = softmax(S), S = scale * Q K^T:
//   dV = P^T dO      dP = dO V^T      dS = P * (dP - delta), delta = rowsum(dO * O) - dlse
//   dQ = scale * dS K      dK = scale * dS^T Q
// A task owns a range of memory rows, so dK and dV are summed in one place. Each task sums its own dQ; the sums of the
// tasks are added in the order of the tasks, so that two runs are equal to the bit.
#include <cmath>
#include <limits>
#include <vector>

#include "blocks.h"
#include "stm_fast/memory_read.h"
#include "stm_fast/pack.h"
#include "stm_fast/scratch.h"

namespace stm_fast {

namespace {

// The query side, packed once for all tasks: it is passed over once for every block of memory rows.
template <class T>
struct PackedQueries {
  T* query;          // [Bq][panels][key_dim][lanes]
  T* query_rows;     // [Bq][key panels][M][lanes]
  T* grad_out;       // [B][panels][value_dim][lanes]
  T* grad_out_rows;  // [B][value panels][M][lanes]
  T* delta;          // [B][panels][lanes]
  T* largest;        // [B][panels][lanes] as softmax_statistics() gives it
  T* factor;         // [B][panels][lanes]
};

template <class Stored>
class Backward {
  using T = Accumulator<Stored>;

 public:
  Backward(const ReadProblem<Stored>& problem, const Parallel& parallel, const ReadGradients<Stored>& gradients)
      : problem_(problem),
        parallel_(parallel),
        gradients_(gradients),
        kernels_(tile_kernels<T>()),
        blocks_(problem.queries, kernels_),
        padded_queries_(blocks_.panels * kernels_.lanes),
        padded_key_dim_(round_up(problem.key_dim, kernels_.group_rows)),
        wide_key_dim_(round_up(problem.key_dim, kernels_.lanes)),
        wide_value_dim_(round_up(problem.value_dim, kernels_.lanes)),
        query_batches_(problem.query.batch_stride == 0 ? 1 : problem.objects),
        key_batches_(problem.key.batch_stride == 0 ? 1 : problem.objects) {
    plan();
  }

  void run() {
    const Scratch<T> packed(carve_queries(nullptr));
    carve_queries(packed.get());
    pack_statistics();
    parallel_.run(problem_.objects * blocks_.panels,
                  [&](Index i) { pack_queries(i / blocks_.panels, i % blocks_.panels); });
    parallel_.run(query_batches_ * wide_key_dim_ / lanes(), [&](Index i) {
      const Index panels = wide_key_dim_ / lanes();
      pack_columns(problem_.query[i / panels], problem_.key_dim, i % panels,
                   queries_.query_rows + i * problem_.queries * lanes());
    });
    parallel_.run(problem_.objects * wide_value_dim_ / lanes(), [&](Index i) {
      const Index panels = wide_value_dim_ / lanes();
      pack_columns(gradients_.grad_out[i / panels], problem_.value_dim, i % panels,
                   queries_.grad_out_rows + i * problem_.queries * lanes());
    });

    const Index workspace = Workspace(*this, nullptr).used;
    const Scratch<T> scratch(std::ssize(tasks_) * workspace);
    const Scratch<T> grad_query(grad_query_slots_ * grad_query_size());
    parallel_.run(std::ssize(tasks_), [&](Index i) {
      run(tasks_[i], Workspace(*this, scratch.get() + i * workspace),
          grad_query.get() + tasks_[i].slot * grad_query_size());
    });
    parallel_.run(query_batches_ * blocks_.panels,
                  [&](Index i) { write_grad_query(i / blocks_.panels, i % blocks_.panels, grad_query.get()); });
  }

 private:
  // Objects [object, object_end) over row blocks [begin, end); their dQ sums begin at `slot`.
  struct Task {
    Index object;
    Index object_end;
    Index begin;
    Index end;
    Index slot;
  };

  struct Workspace {
    Workspace(const Backward& read, T* block) {
      Carver<T> carver(block);
      const Index rows = round_up(rows_per_block, read.kernels_.group_rows);
      const Index queries = read.block_stride();
      key = carver.take(rows * read.problem_.key_dim);
      key_columns = carver.take(rows * read.padded_key_dim_);
      value = carver.take(rows * read.problem_.value_dim);
      weights = carver.take(rows * queries);
      grad_scores = carver.take(rows * queries);
      grad_key = carver.take(rows * read.wide_key_dim_);
      grad_value = carver.take(rows * read.wide_value_dim_);
      used = carver.used();
    }
    T* key;          // [row groups][key_dim][group_rows]
    T* key_columns;  // [key groups][rows][group_rows]
    T* value;        // [row groups][value_dim][group_rows]
    T* weights;      // [rows][queries of a block]: P
    T* grad_scores;  // [rows][queries of a block]: dP, then dS
    T* grad_key;     // [key panels][rows][lanes]
    T* grad_value;   // [value panels][rows][lanes]
    Index used;
  };

  Index lanes() const { return kernels_.lanes; }
  Index block_stride() const { return blocks_.largest_block() * lanes(); }
  Index padded_rows() const { return round_up(rows_per_block, kernels_.group_rows); }
  Index grad_query_size() const { return padded_queries_ * padded_key_dim_; }

  // Tasks: one object each where keys are its own, every object where they share keys (dK is summed over them).
  void plan() {
    const Index per_task = key_batches_ == 1 ? problem_.objects : 1;
    const Index groups = problem_.objects / per_task;
    for (Index group = 0; group < groups; ++group) {
      Index rows = 0;
      for (Index object = group * per_task; object < (group + 1) * per_task; ++object) {
        rows = std::max(rows, problem_.rows_of(object));
      }
      const Index row_blocks = divide_up(rows, rows_per_block);
      const Index ranges = std::min(divide_up(parallel_.threads, groups), row_blocks);
      for (Index range = 0; range < ranges; ++range) {
        tasks_.push_back({group * per_task, (group + 1) * per_task, row_blocks * range / ranges,
                          row_blocks * (range + 1) / ranges, grad_query_slots_});
        grad_query_slots_ += query_batches_ == 1 ? 1 : per_task;
      }
    }
  }

  Index carve_queries(T* block) {
    Carver<T> carver(block);
    queries_.query = carver.take(query_batches_ * padded_queries_ * problem_.key_dim);
    queries_.query_rows = carver.take(query_batches_ * problem_.queries * wide_key_dim_);
    queries_.grad_out = carver.take(problem_.objects * padded_queries_ * problem_.value_dim);
    queries_.grad_out_rows = carver.take(problem_.objects * problem_.queries * wide_value_dim_);
    queries_.delta = carver.take(problem_.objects * padded_queries_);
    queries_.largest = carver.take(problem_.objects * padded_queries_);
    queries_.factor = carver.take(problem_.objects * padded_queries_);
    return carver.used();
  }

  void pack_queries(Index object, Index panel) const {
    const Index first = panel * lanes(), count = blocks_.queries_in(panel);
    if (object < query_batches_) {
      pack_panel(problem_.query[object].from_row(first), count, problem_.key_dim, lanes(),
                 queries_.query + (object * padded_queries_ + first) * problem_.key_dim);
    }
    pack_panel(gradients_.grad_out[object].from_row(first), count, problem_.value_dim, lanes(),
               queries_.grad_out + (object * padded_queries_ + first) * problem_.value_dim);
    T* delta = queries_.delta + object * padded_queries_ + first;
    std::fill_n(delta, lanes(), T(0));
    for (Index i = 0; i < count; ++i) {
      T sum = 0;
      for (Index c = 0; c < problem_.value_dim; ++c) {
        sum += widen(gradients_.grad_out[object].at(first + i, c)) * widen(gradients_.out[object].at(first + i, c));
      }
      delta[i] = sum - gradients_.grad_lse[object].at(first + i, 0);
    }
  }

  // The lanes beyond the queries get weights of 0.
  void pack_statistics() const {
    const Index count = problem_.objects * problem_.queries;
    const Scratch<T> statistics(2 * count);
    softmax_statistics(problem_, parallel_, statistics.get(), statistics.get() + count);
    std::fill_n(queries_.largest, problem_.objects * padded_queries_, std::numeric_limits<T>::infinity());
    std::fill_n(queries_.factor, problem_.objects * padded_queries_, T(0));
    for (Index object = 0; object < problem_.objects; ++object) {
      const T* from = statistics.get() + object * problem_.queries;
      std::copy_n(from, problem_.queries, queries_.largest + object * padded_queries_);
      std::copy_n(from + count, problem_.queries, queries_.factor + object * padded_queries_);
    }
  }

  // One panel [M][lanes] of the columns of a matrix [M, columns].
  void pack_columns(Matrix<const Stored> source, Index columns, Index panel, T* to) const {
    const Matrix<const Stored> from = source.transposed().from_row(panel * lanes());
    pack_panel(from, std::min(lanes(), columns - panel * lanes()), problem_.queries, lanes(), to);
  }

  void run(const Task& task, const Workspace& work, T* grad_query) const {
    const Index slots = query_batches_ == 1 ? 1 : task.object_end - task.object;
    std::fill_n(grad_query, slots * grad_query_size(), T(0));
    for (Index block = task.begin; block < task.end; ++block) {
      const Index row = block * rows_per_block;
      std::fill_n(work.grad_key, wide_key_dim_ * padded_rows(), T(0));
      for (Index object = task.object; object < task.object_end; ++object) {
        const Index rows = std::min(rows_per_block, problem_.rows_of(object) - row);
        if (rows > 0) {
          const Index slot = query_batches_ == 1 ? 0 : object - task.object;
          pass_over_queries(object, row, rows, work, grad_query + slot * grad_query_size());
          write_rows(work.grad_value, problem_.value_dim, rows, T(1),
                     gradients_.value + (object * problem_.rows + row) * problem_.value_dim);
        }
      }
      const Index key_batch = key_batches_ == 1 ? 0 : task.object;
      write_rows(work.grad_key, problem_.key_dim, std::min(rows_per_block, problem_.rows - row), problem_.scale,
                 gradients_.key + (key_batch * problem_.rows + row) * problem_.key_dim);
    }
  }

  // All queries of an object against one block of its rows.
  void pass_over_queries(Index object, Index row, Index rows, const Workspace& work, T* grad_query) const {
    const Matrix<const Stored> key = problem_.key[object].from_row(row), value = problem_.value[object].from_row(row);
    pack_panels(key, rows, problem_.key_dim, kernels_.group_rows, work.key);
    pack_panels(key.transposed(), problem_.key_dim, rows, kernels_.group_rows, work.key_columns);
    pack_panels(value, rows, problem_.value_dim, kernels_.group_rows, work.value);
    std::fill_n(work.grad_value, wide_value_dim_ * padded_rows(), T(0));
    for (Index block = 0; block < blocks_.count; ++block) {
      const Index first = blocks_.first_panel(block), panels = blocks_.panels_in(block);
      for (Index panel = 0; panel < panels; ++panel) {
        score_gradients(object, first + panel, rows, work, panel * lanes());
        kernels_.add_product({padded_key_dim_, rows, work.key_columns, 0, work.grad_scores + panel * lanes(),
                              block_stride(), grad_query + (first + panel) * lanes() * padded_key_dim_, lanes()});
      }
      const Index queries = std::min(panels * lanes(), problem_.queries - first * lanes());
      add_columns(work.weights, queries_.grad_out_rows + object * wide_value_dim_ * problem_.queries, wide_value_dim_,
                  first, queries, rows, work.grad_value);
      const Index query_batch = query_batches_ == 1 ? 0 : object;
      add_columns(work.grad_scores, queries_.query_rows + query_batch * wide_key_dim_ * problem_.queries, wide_key_dim_,
                  first, queries, rows, work.grad_key);
    }
  }

  // P and dS of one panel of queries against the packed rows, at `column` of the tiles.
  void score_gradients(Index object, Index panel, Index rows, const Workspace& work, Index column) const {
    const Index stride = block_stride(), key_dim = problem_.key_dim, value_dim = problem_.value_dim;
    const Index query = (query_batches_ == 1 ? 0 : object) * padded_queries_ + panel * lanes();
    const Index at = object * padded_queries_ + panel * lanes();
    T* weights = work.weights + column;
    T* grad_scores = work.grad_scores + column;
    kernels_.scaled_product({rows, key_dim, work.key, 0, queries_.query + query * key_dim, lanes(), weights, stride},
                            problem_.scale);
    kernels_.weights(weights, rows, stride, queries_.largest + at, queries_.factor + at);
    kernels_.scaled_product(
        {rows, value_dim, work.value, 0, queries_.grad_out + at * value_dim, lanes(), grad_scores, stride}, T(1));
    kernels_.softmax_backward(weights, grad_scores, rows, stride, queries_.delta + at);
  }

  // sums[row][column] += sum over the queries of a block of tile[row][query] * columns[query][column].
  void add_columns(const T* tile, const T* columns, Index width, Index first_panel, Index queries, Index rows,
                   T* sums) const {
    for (Index panel = 0; panel < width / lanes(); ++panel) {
      kernels_.add_product_of_rows({rows, queries, tile, block_stride(),
                                    columns + (panel * problem_.queries + first_panel * lanes()) * lanes(), lanes(),
                                    sums + panel * padded_rows() * lanes(), lanes()});
    }
  }

  // Panels [panels][rows][lanes] into contiguous rows [rows, width].
  void write_rows(const T* panels, Index width, Index rows, T factor, Stored* to) const {
    for (Index row = 0; row < rows; ++row) {
      for (Index c = 0; c < width; ++c) {
        const T sum = panels[(c / lanes() * padded_rows() + row) * lanes() + c % lanes()];
        to[row * width + c] = narrow<Stored>(sum * factor);
      }
    }
  }

  // Adds the dQ of the tasks, in their order.
  void write_grad_query(Index batch, Index panel, const T* slots) const {
    const Index key_dim = problem_.key_dim, first = panel * lanes();
    for (Index i = 0; i < blocks_.queries_in(panel); ++i) {
      for (Index d = 0; d < key_dim; ++d) {
        T sum = 0;
        for (const Task& task : tasks_) {
          if (query_batches_ == 1 || (task.object <= batch && batch < task.object_end)) {
            const Index slot = task.slot + (query_batches_ == 1 ? 0 : batch - task.object);
            sum += slots[slot * grad_query_size() + first * padded_key_dim_ + d * lanes() + i];
          }
        }
        gradients_.query[(batch * problem_.queries + first + i) * key_dim + d] = narrow<Stored>(sum * problem_.scale);
      }
    }
  }

  const ReadProblem<Stored>& problem_;
  const Parallel& parallel_;
  const ReadGradients<Stored>& gradients_;
  const TileKernels<T>& kernels_;
  QueryBlocks blocks_;
  Index padded_queries_;
  Index padded_key_dim_;
  Index wide_key_dim_;
  Index wide_value_dim_;
  Index query_batches_;
  Index key_batches_;
  std::vector<Task> tasks_;
  Index grad_query_slots_ = 0;
  PackedQueries<T> queries_;
};

}  // namespace

template <class Stored>
void memory_read_backward(const ReadProblem<Stored>& problem, const Parallel& parallel,
                          const ReadGradients<Stored>& gradients) {
  if (problem.objects > 0 && problem.queries > 0) {
    Backward<Stored>(problem, parallel, gradients).run();
  }
}

template void memory_read_backward(const ReadProblem<float>&, const Parallel&, const ReadGradients<float>&);
template void memory_read_backward(const ReadProblem<double>&, const Parallel&, const ReadGradients<double>&);
template void memory_read_backward(const ReadProblem<BFloat16>&, const Parallel&, const ReadGradients<BFloat16>&);

}  // namespace stm_fast
