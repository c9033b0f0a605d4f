// Queries of a block, prepared for products with the numbers of a quantized memory.
//
// Queries of an fp8 memory are rounded to bfloat16. Those of an int8 memory become bytes, with one scale per query. The
// queries of a frame have much in common, which would make the steps of the bytes coarse: three directions are taken
// out of them first, and their products with the keys added in float,
//   q_i = sum_t coefficient_it * direction_t + scale_i * byte_i
// kernels/README.md has the errors of reads.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "stm_fast/memory_read.h"
#include "stm_fast/pack.h"
#include "stm_fast/tile_kernels.h"

namespace stm_fast {

inline constexpr Index widest_key = 8192;  // channels of a key that is multiplied as bytes
inline constexpr std::int16_t largest_direction = 2047;
static_assert(Index{128} * largest_direction * widest_key <= std::numeric_limits<std::int32_t>::max());

// Of `queries` queries, padded to whole panels of SIMD lanes.
template <class Element>
struct PackedQueries {
  PackedQueries(Index queries, Index key_dim, Carver& carver) {
    panels = carver.take<Element>(queries * depth_of<Element>(key_dim));
    scale = carver.take<float>(queries);
    terms = carver.take<float>(queries * directions<Element>);
    floats = carver.take<float>(queries * key_dim);
    rounded = carver.take<std::byte>(queries * key_dim * (4 / ElementTraits<Element>::numbers));
    direction = carver.take<std::int16_t>(directions<Element> * key_dim);
  }
  Element* panels;          // [panels][depth][lanes]
  float* scale;             // [queries], including that of the scores
  float* terms;             // [panels][directions][lanes], times that of the scores
  float* floats;            // [queries][Ck], scratch
  std::byte* rounded;       // [queries][Ck], scratch
  std::int16_t* direction;  // [directions][Ck]
};

namespace quantizing {

// In parts, so that compilers vectorize it.
template <class Left, class Right>
inline float dot(const Left* left, const Right* right, Index count) {
  constexpr Index parts = 16;
  float sums[parts] = {};
  for (Index c = 0; c + parts <= count; c += parts) {
    for (Index i = 0; i < parts; ++i) {
      sums[i] += static_cast<float>(left[c + i]) * static_cast<float>(right[c + i]);
    }
  }
  for (Index c = count / parts * parts; c < count; ++c) {
    sums[0] += static_cast<float>(left[c]) * static_cast<float>(right[c]);
  }
  float sum = 0;
  for (const float part : sums) {
    sum += part;
  }
  return sum;
}

// NaN if there is one.
inline float largest_magnitude(const float* numbers, Index count) {
  float largest = 0, sum = 0;
  for (Index c = 0; c < count; ++c) {
    largest = std::max(largest, std::fabs(numbers[c]));
    sum += numbers[c] - numbers[c];
  }
  return largest + sum;
}

// 1 / x, or 0 where it would be imprecise or infinite.
inline float inverse(float x) { return x < std::numeric_limits<float>::min() ? 0.0f : 1 / x; }

inline void round_direction(const float* numbers, Index count, std::int16_t* direction) {
  const float factor = largest_direction * inverse(largest_magnitude(numbers, count));
  std::transform(numbers, numbers + count, direction,
                 [factor](float x) { return static_cast<std::int16_t>(std::lrint(x * factor)); });
}

}  // namespace quantizing

// Queries [count, Ck] as quads of bytes; a query that is not finite gets a scale that is not.
class QueryQuantizer {
 public:
  QueryQuantizer(float scale, Index count, Index key_dim, Index lanes, const PackedQueries<ByteQuad>& to)
      : scale_(scale), count_(count), key_dim_(key_dim), lanes_(lanes), to_(to) {}

  void run(Matrix<const float> query) const {
    for (Index i = 0; i < count_; ++i) {
      for (Index c = 0; c < key_dim_; ++c) {
        row(i)[c] = query.at(i, c);
      }
      to_.scale[i] = quantizing::largest_magnitude(row(i), key_dim_);
    }
    for (Index t = 0; t < directions<ByteQuad>; ++t) {
      std::int16_t* const direction = to_.direction + t * key_dim_;
      choose(t, direction);
      take_out(t, direction);
    }
    auto* const bytes = reinterpret_cast<Int8*>(to_.rounded);
    for (Index i = 0; i < count_; ++i) {
      round(i, bytes + i * key_dim_);
    }
    pack_panels(Matrix<const Int8>{bytes, key_dim_, 1}, count_, key_dim_, lanes_, to_.panels);
  }

 private:
  float* row(Index i) const { return to_.floats + i * key_dim_; }
  bool usable(Index i) const { return std::isfinite(to_.scale[i]); }

  // The first is the mean of the queries, the others the query of which most is left, both relative to the size of a
  // query: a very large query does not decide for the others.
  void choose(Index t, std::int16_t* direction) const {
    std::fill_n(direction, key_dim_, std::int16_t(0));
    if (t == 0) {
      auto* const mean = reinterpret_cast<float*>(to_.panels);  // not packed yet
      std::fill_n(mean, key_dim_, 0.0f);
      for (Index i = 0; i < count_; ++i) {
        const float factor = usable(i) ? quantizing::inverse(to_.scale[i]) : 0.0f;
        for (Index c = 0; c < key_dim_ && factor != 0; ++c) {
          mean[c] += factor * row(i)[c];
        }
      }
      return quantizing::round_direction(mean, key_dim_, direction);
    }
    float most = 0;
    Index found = -1;
    for (Index i = 0; i < count_; ++i) {
      if (usable(i)) {
        const float left = quantizing::largest_magnitude(row(i), key_dim_) * quantizing::inverse(to_.scale[i]);
        found = left > most ? i : found;
        most = std::max(most, left);
      }
    }
    if (found >= 0) {
      quantizing::round_direction(row(found), key_dim_, direction);
    }
  }

  void take_out(Index t, const std::int16_t* direction) const {
    const float norm = quantizing::inverse(quantizing::dot(direction, direction, key_dim_));
    for (Index i = 0; i < count_; ++i) {
      float* const numbers = row(i);
      const float coefficient = quantizing::dot(numbers, direction, key_dim_) * norm;
      for (Index c = 0; c < key_dim_; ++c) {
        numbers[c] -= coefficient * static_cast<float>(direction[c]);
      }
      to_.terms[(i / lanes_ * directions<ByteQuad> + t) * lanes_ + i % lanes_] = scale_ * coefficient;
    }
  }

  void round(Index i, Int8* bytes) const {
    constexpr float largest_byte = 127, offset = 128;
    const float step = quantizing::largest_magnitude(row(i), key_dim_) / largest_byte;
    const bool finite = std::isfinite(step);
    const float factor = finite ? quantizing::inverse(step) : 0.0f;
    for (Index c = 0; c < key_dim_; ++c) {
      const float number = finite ? row(i)[c] : 0.0f;
      bytes[c].bits = static_cast<std::int8_t>(static_cast<std::int32_t>(number * factor + (offset + 0.5f)));
    }
    to_.scale[i] = scale_ * (factor == 0 && finite ? 0.0f : step);
  }

  float scale_;
  Index count_;
  Index key_dim_;
  Index lanes_;
  const PackedQueries<ByteQuad>& to_;
};

// Queries [count, Ck] as pairs of bfloat16 numbers.
inline void round_queries(Matrix<const float> query, Index count, Index key_dim, Index lanes,
                          const PackedQueries<BFloat16Pair>& to) {
  auto* const rounded = reinterpret_cast<BFloat16*>(to.rounded);
  for (Index i = 0; i < count; ++i) {
    for (Index c = 0; c < key_dim; ++c) {
      rounded[i * key_dim + c] = narrow<BFloat16>(query.at(i, c));
    }
  }
  pack_panels(Matrix<const BFloat16>{rounded, key_dim, 1}, count, key_dim, lanes, to.panels);
}

}  // namespace stm_fast
