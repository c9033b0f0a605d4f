// Every similarity as one dot product: S_ij = scale * <feature(q_i), feature(k_j)>.
//
//            feature(q)                                     feature(k)
//   dot      q                                              k
//   l2       [2 q, -1, -|q|^2]                              shrinkage * [k, |k|^2, 1]
//   l2 with selection e
//            [2 e q, -e, -sum e q^2]                        shrinkage * [k, k^2, 1]
// without the last entry of each if query_norm is off. The sums are the three matrix products of XMem, equation 2.
// These maps and their transposed derivatives are all that the engine needs to know about a similarity.
#pragma once

#include <iterator>
#include <numeric>

#include "quantized_rows.h"
#include "stm_fast/memory_read.h"
#include "stm_fast/pack.h"

namespace stm_fast {

// A sum in several parts, whose rounding errors are smaller than those of one. A norm is a term of every score of its
// row, so its error does not average out in the softmax, unlike that of a product.
template <class T>
class Norm {
 public:
  void add(Index c, T term) { parts_[c % kParts] += term; }
  T total() const { return std::accumulate(std::begin(parts_), std::end(parts_), T(0)); }

 private:
  static constexpr Index kParts = 8;
  T parts_[kParts] = {};
};

template <class Stored>
class Features {
  using T = Accumulator<Stored>;

 public:
  explicit Features(const ReadProblem<Stored>& problem)
      : problem_(problem),
        is_dot_(problem.similarity == Similarity::dot),
        is_l2_(problem.similarity == Similarity::l2),
        squares_(!is_l2_             ? 0
                 : problem.selection ? problem.key_dim
                                     : 1),
        dim_(problem.key_dim + squares_ + (has_norm() ? 1 : 0)) {}

  Index dim() const { return dim_; }
  // Whether features are rows as they are stored.
  bool are_stored() const { return is_dot_ && !quantized<Stored>; }

  void of_query(Index object, Index i, T* feature) const {
    const Index key_dim = problem_.key_dim;
    const Matrix<const Dense<Stored>> query = problem_.query[object];
    Norm<T> norm;
    for (Index c = 0; c < key_dim; ++c) {
      const T q = widen(query.at(i, c));
      const T e = selection(object, i, c);
      feature[c] = is_l2_ ? 2 * e * q : q;
      norm.add(c, e * q * q);
      if (problem_.selection) {
        feature[key_dim + c] = -e;
      }
    }
    if (is_l2_ && !problem_.selection) {
      feature[key_dim] = -1;
    }
    if (has_norm()) {
      feature[dim_ - 1] = -norm.total();
    }
  }

  void of_key(Index object, Index j, T* feature) const {
    const T factor = shrinkage(object, j);
    of_key_unscaled(object, j, feature);
    for (Index f = 0; f < dim_; ++f) {
      feature[f] *= factor;
    }
  }

  // The gradients of q_i and e_i, contiguous rows, from the gradient of their feature.
  void backward_of_query(Index batch, Index i, const T* grad, Stored* grad_query, T* grad_selection) const {
    const Index key_dim = problem_.key_dim;
    const T grad_norm = has_norm() ? grad[dim_ - 1] : T(0);
    for (Index c = 0; c < key_dim; ++c) {
      const T q = widen(problem_.query[batch].at(i, c));
      const T e = selection(batch, i, c);
      grad_query[c] = narrow<Stored>(is_l2_ ? 2 * e * (grad[c] - q * grad_norm) : grad[c]);
      if (problem_.selection) {
        grad_selection[c] = 2 * q * grad[c] - grad[key_dim + c] - q * q * grad_norm;
      }
    }
  }

  // Adds the gradient of the feature to that of k_j; returns that of shrinkage_j. `feature` is scratch for one.
  T backward_of_key(Index object, Index j, const T* grad, T* grad_key, T* feature) const {
    const Index key_dim = problem_.key_dim;
    const T factor = shrinkage(object, j);
    for (Index c = 0; c < key_dim; ++c) {
      const T k = widen(problem_.key[object].at(j, c));
      const T grad_square = squares_ == 0 ? T(0) : grad[key_dim + (problem_.selection ? c : 0)];
      grad_key[c] += factor * (grad[c] + 2 * k * grad_square);
    }
    if (!problem_.shrinkage) {
      return 0;
    }
    of_key_unscaled(object, j, feature);
    T sum = 0;
    for (Index f = 0; f < dim_; ++f) {
      sum += grad[f] * feature[f];
    }
    return sum;
  }

  // Panels [divide_up(count, width)][dim in elements][width] of queries; `buffer` holds count features. Pairs consist
  // of numbers as stored: for dot similarity only.
  template <class Element>
  void pack_queries(Index object, Index first, Index count, Index width, T* buffer, Element* panels) const {
    if constexpr (std::is_same_v<Element, T>) {
      if (!is_dot_) {
        return pack_panels(of_queries(object, first, count, buffer), count, dim_, width, panels);
      }
    }
    pack_panels(problem_.query[object].from_row(first), count, dim_, width, panels);
  }

  // Panels [divide_up(dim, width)][count in elements][width] of queries transposed; pairs as for pack_queries.
  template <class Element>
  void pack_query_columns(Index object, Index first, Index count, Index width, T* buffer, Element* columns) const {
    if constexpr (std::is_same_v<Element, T>) {
      if (!is_dot_) {
        return pack_panels(of_queries(object, first, count, buffer).transposed(), dim_, count, width, columns);
      }
    }
    pack_panels(problem_.query[object].from_row(first).transposed(), dim_, count, width, columns);
  }

  // Panels [divide_up(count, width)][dim in elements][width] of keys; `columns`, if needed, are panels
  // [divide_up(dim, width)][count][width] of the transposed keys.
  template <class Element>
  void pack_keys(Index object, Index first, Index count, Index width, T* buffer, Element* panels,
                 Element* columns = nullptr) const {
    if constexpr (std::is_same_v<Element, T>) {
      if (!is_dot_) {
        for (Index j = 0; j < count; ++j) {
          of_key(object, first + j, buffer + j * dim_);
        }
        return pack_both(Matrix<const T>{buffer, dim_, 1}, count, width, panels, columns);
      }
    }
    pack_both(problem_.key[object].from_row(first), count, width, panels, columns);
    if constexpr (quantized<Stored>) {
      dequantize_keys(problem_, object, first, count, width, panels);
    }
  }

 private:
  bool has_norm() const { return is_l2_ && problem_.query_norm; }
  T shrinkage(Index object, Index j) const { return problem_.shrinkage ? problem_.shrinkage[object].at(j, 0) : T(1); }
  T selection(Index object, Index i, Index c) const {
    return problem_.selection ? problem_.selection[object].at(i, c) : T(1);
  }

  Matrix<const T> of_queries(Index object, Index first, Index count, T* buffer) const {
    for (Index i = 0; i < count; ++i) {
      of_query(object, first + i, buffer + i * dim_);
    }
    return {buffer, dim_, 1};
  }

  void of_key_unscaled(Index object, Index j, T* feature) const {
    const Index key_dim = problem_.key_dim;
    Norm<T> norm;
    for (Index c = 0; c < key_dim; ++c) {
      const T k = widen(problem_.key[object].at(j, c));
      feature[c] = k;
      norm.add(c, k * k);
      if (problem_.selection) {
        feature[key_dim + c] = k * k;
      }
    }
    if (is_l2_ && !problem_.selection) {
      feature[key_dim] = norm.total();
    }
    if (has_norm()) {
      feature[dim_ - 1] = 1;
    }
  }

  template <class Number, class Element>
  void pack_both(Matrix<const Number> rows, Index count, Index width, Element* panels, Element* columns) const {
    pack_panels(rows, count, dim_, width, panels);
    if (columns != nullptr) {
      pack_panels(rows.transposed(), dim_, count, width, columns);
    }
  }

  const ReadProblem<Stored>& problem_;
  bool is_dot_;  // features are the rows as they are stored
  bool is_l2_;
  Index squares_;  // features with squares of the key
  Index dim_;
};

}  // namespace stm_fast
