// Packing: strided rows of any stored type into panels of accumulators that the tile kernels read straight through.
//
// Rows are moved four by four, which every machine has vectors for: panels are a multiple of four rows wide.
#pragma once

#include <algorithm>
#include <cstring>

#include "stm_fast/matrix.h"
#include "stm_fast/number.h"
#include "stm_fast/scratch.h"

namespace stm_fast {

namespace packing {

constexpr Index quad = 4;

template <class T>
struct QuadOf {
  typedef T type __attribute__((vector_size(quad * sizeof(T))));
};
template <class T>
using Quad = typename QuadOf<T>::type;

template <class T>
inline __attribute__((always_inline)) void load(const T* from, Quad<T>& to) {
  std::memcpy(&to, from, sizeof(to));
}
inline __attribute__((always_inline)) void load(const BFloat16* from, Quad<float>& to) {
  Quad<std::uint16_t> bits;
  std::memcpy(&bits, from, sizeof(bits));
  const Quad<std::uint32_t> upper = __builtin_convertvector(bits, Quad<std::uint32_t>) << 16;
  std::memcpy(&to, &upper, sizeof(to));
}
// As widen(Half), four at a time.
inline __attribute__((always_inline)) void load(const Half* from, Quad<float>& to) {
  using Bits = Quad<std::uint32_t>;
  Quad<std::uint16_t> bits;
  std::memcpy(&bits, from, sizeof(bits));
  const Bits wide = __builtin_convertvector(bits, Bits);
  const Bits magnitude = (wide & 0x7fffu) << 13, sign = (wide & 0x8000u) << 16;
  const Quad<float> value = reinterpret_cast<Quad<float>>(magnitude) * 0x1p112f;
  const Bits special = reinterpret_cast<Bits>(magnitude >= 0x0f800000u) & 0x7f800000u;
  to = reinterpret_cast<Quad<float>>(reinterpret_cast<Bits>(value) | special | sign);
}
inline __attribute__((always_inline)) void load(const Int8* from, Quad<float>& to) {
  Quad<std::int8_t> bits;
  std::memcpy(&bits, from, sizeof(bits));
  to = __builtin_convertvector(bits, Quad<float>);
}
// As widen(Float8), four at a time.
inline __attribute__((always_inline)) void load(const Float8* from, Quad<float>& to) {
  using Bits = Quad<std::uint32_t>;
  Quad<std::uint8_t> bits;
  std::memcpy(&bits, from, sizeof(bits));
  const Bits wide = __builtin_convertvector(bits, Bits);
  const Bits magnitude = (wide & 0x7fu) << 20, sign = (wide & 0x80u) << 24;
  const Quad<float> value = reinterpret_cast<Quad<float>>(magnitude) * 0x1p120f;
  const Bits special = reinterpret_cast<Bits>(magnitude == 0x07f00000u) & 0x7f800000u;
  to = reinterpret_cast<Quad<float>>(reinterpret_cast<Bits>(value) | special | sign);
}
template <class T>
inline __attribute__((always_inline)) void store(T* to, const Quad<T>& from) {
  std::memcpy(to, &from, sizeof(from));
}

// Four elements of each of four rows, transposed: to[d][r] = rows[r][d], `width` apart.
template <class Stored>
inline void transpose_quad(const Stored* from, Index row_stride, Accumulator<Stored>* to, Index width) {
  using Vector = Quad<Accumulator<Stored>>;
  Vector a, b, c, d;
  load(from, a);
  load(from + row_stride, b);
  load(from + 2 * row_stride, c);
  load(from + 3 * row_stride, d);
  const Vector ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Vector cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  const Vector columns[quad] = {
      __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5), __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7),
      __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5), __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7)};
  for (Index i = 0; i < quad; ++i) {
    store(to + i * width, columns[i]);
  }
}

}  // namespace packing

// Panels [divide_up(rows, width)][depth][width]: `width` rows of the source side by side, zeros in the lanes beyond.
template <class Stored>
class PanelPacker {
  using T = Accumulator<Stored>;
  static constexpr Index quad = packing::quad;

 public:
  PanelPacker(Matrix<const Stored> source, Index rows, Index depth, Index width, T* panels)
      : source_(source), rows_(rows), depth_(depth), width_(width), panels_(panels) {}

  void run() const {
    if (rows_ % width_ != 0) {
      std::fill_n(panels_ + rows_ / width_ * width_ * depth_, width_ * depth_, T(0));
    }
    const Index whole_rows = rows_ / quad * quad, whole_depth = depth_ / quad * quad;
    if (source_.row_stride == 1) {
      copy_quads(whole_rows, whole_depth);
    } else if (source_.column_stride == 1) {
      transpose_quads(whole_rows, whole_depth);
    } else {
      return copy_elements(0, rows_, 0, depth_);
    }
    copy_elements(0, whole_rows, whole_depth, depth_);
    copy_elements(whole_rows, rows_, 0, depth_);
  }

 private:
  T* at(Index row) const { return panels_ + row / width_ * width_ * depth_ + row % width_; }

  // Rows lie side by side: four columns are four streams to read, and fill whole cache lines of narrow panels.
  void copy_quads(Index rows, Index depth) const {
    for (Index d = 0; d < depth; d += quad) {
      T* panel = panels_ + d * width_;
      for (Index row = 0, lane = 0; row < rows; row += quad) {
        for (Index i = 0; i < quad; ++i) {
          packing::Quad<T> four;
          packing::load(&source_.at(row, d + i), four);
          packing::store(panel + lane + i * width_, four);
        }
        lane += quad;
        if (lane == width_) {
          lane = 0;
          panel += width_ * depth_;
        }
      }
    }
  }

  // Columns lie side by side.
  void transpose_quads(Index rows, Index depth) const {
    constexpr Index line = cache_line / static_cast<Index>(sizeof(Stored));
    for (Index row = 0; row < rows; row += quad) {
      T* const to = at(row);
      for (Index d = 0; d < depth; d += quad) {
        if (row + quad < rows) {
          // the next four rows, a line at each step: no hardware foresees a jump to another row
          const Index step = d / quad, column = std::min(step / quad * line, depth - 1);
          __builtin_prefetch(&source_.at(row + quad + step % quad, column));
        }
        packing::transpose_quad(&source_.at(row, d), source_.row_stride, to + d * width_, width_);
      }
    }
  }

  void copy_elements(Index row, Index row_end, Index column, Index column_end) const {
    for (; row < row_end; ++row) {
      T* const to = at(row);
      for (Index d = column; d < column_end; ++d) {
        to[d * width_] = widen(source_.at(row, d));
      }
    }
  }

  Matrix<const Stored> source_;
  Index rows_;
  Index depth_;
  Index width_;
  T* panels_;
};

template <class Stored>
void pack_panels(Matrix<const Stored> source, Index rows, Index depth, Index width, Accumulator<Stored>* panels) {
  PanelPacker<Stored>(source, rows, depth, width, panels).run();
}

}  // namespace stm_fast
