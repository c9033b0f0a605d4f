// The end of a read: parts are merged exactly, means are written.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "passes.h"

namespace stm_fast {

// Two parts of one softmax, each relative to its own largest score, merged relative to the larger.
template <class T>
class Joint {
 public:
  Joint(T whole, T part) : largest(std::max(whole, part)) {
    const T shift = largest == -std::numeric_limits<T>::infinity() ? T(0) : largest;
    whole_scale_ = std::exp(whole - shift);
    part_scale_ = std::exp(part - shift);
  }
  T of(T whole, T part) const { return whole_scale_ * whole + part_scale_ * part; }

  const T largest;

 private:
  T whole_scale_;
  T part_scale_;
};

// The factor for sums; 0 without valid rows.
template <class T>
inline T mean_factor(T total) {
  return total == T(0) ? T(0) : T(1) / total;
}

// Whether all numbers are finite, in a form that compilers vectorize.
template <class T>
bool all_finite(const T* numbers, Index count) {
  using Bits = std::conditional_t<sizeof(T) == sizeof(std::uint32_t), std::uint32_t, std::uint64_t>;
  const Bits exponent = std::bit_cast<Bits>(std::numeric_limits<T>::infinity());
  Bits found = 0;
  for (Index i = 0; i < count; ++i) {
    found |= static_cast<Bits>((std::bit_cast<Bits>(numbers[i]) & exponent) == exponent);
  }
  return found == 0;
}

// The lse of a query.
template <class T>
inline T log_sum(T largest, T total) {
  return largest + std::log(total);
}

template <class Stored>
void write_means(const Accumulator<Stored>* means, Index value_dim, Dense<Stored>* out) {
  for (Index c = 0; c < value_dim; ++c) {
    out[c] = narrow<Dense<Stored>>(means[c]);
  }
}

// Writes the results of query number `at`.
template <class Stored>
void write_query(const ReadResults<Stored>& results, Index at, Index value_dim, Accumulator<Stored> largest,
                 Accumulator<Stored> total, const Accumulator<Stored>* means, std::atomic<bool>& overflowed) {
  results.lse[at] = log_sum(largest, total);
  write_means<Stored>(means, value_dim, results.out + at * value_dim);
  if (!all_finite(means, value_dim)) {
    overflowed.store(true, std::memory_order_relaxed);
  }
}

}  // namespace stm_fast
