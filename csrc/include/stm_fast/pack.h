// Packing: strided rows of any stored type into panels of elements that the tile kernels read sequentially.
//
// Rows are moved in groups of four, for which every machine has vectors: panels are a multiple of four rows wide.
#pragma once

#include <algorithm>
#include <cstring>

#include "stm_fast/element.h"
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
// Like widen(), four at a time.
template <class Small>
inline __attribute__((always_inline)) Quad<float> widen_quad(const Small* from) {
  using Bits = Quad<std::uint32_t>;
  Quad<decltype(from->bits)> bits;
  std::memcpy(&bits, from, sizeof(bits));
  const Bits wide = __builtin_convertvector(bits, Bits);
  constexpr SmallFloat format = small_float<Small>;
  const Bits magnitude = (wide & (format.sign - 1)) << format.shift, sign = (wide & format.sign) << format.sign_shift;
  const Quad<float> value = reinterpret_cast<Quad<float>>(magnitude) * format.rebias;
  const Bits special = reinterpret_cast<Bits>(magnitude >= format.first_special) & 0x7f800000u;
  return reinterpret_cast<Quad<float>>(reinterpret_cast<Bits>(value) | special | sign);
}
inline __attribute__((always_inline)) void load(const Half* from, Quad<float>& to) { to = widen_quad(from); }
inline __attribute__((always_inline)) void load(const Float8* from, Quad<float>& to) { to = widen_quad(from); }
inline __attribute__((always_inline)) void load(const Int8* from, Quad<float>& to) {
  Quad<std::int8_t> bits;
  std::memcpy(&bits, from, sizeof(bits));
  to = __builtin_convertvector(bits, Quad<float>);
}
// Four pairs, or quads, of neighbors.
inline __attribute__((always_inline)) void load(const BFloat16* from, Quad<std::uint32_t>& to) {
  std::memcpy(&to, from, sizeof(to));
}
inline __attribute__((always_inline)) void load(const Int8* from, Quad<std::uint32_t>& to) {
  std::memcpy(&to, from, sizeof(to));
}
template <class Element, class Vector>
inline __attribute__((always_inline)) void store(Element* to, const Vector& from) {
  std::memcpy(to, &from, sizeof(from));
}

// Quads of rows that load_across() takes at a time: bytes fill a vector with sixteen rows.
template <class Element>
inline constexpr Index quads_across = std::is_same_v<Element, ByteQuad> ? 4 : 1;

// One element of each of four (sixteen) adjacent rows; the numbers of an element are `stride` apart.
template <class Stored, class Vector>
inline __attribute__((always_inline)) void load_across(const Stored* from, Index /*stride*/, Vector (&to)[1]) {
  load(from, to[0]);
}
inline __attribute__((always_inline)) void load_across(const BFloat16* from, Index stride,
                                                       Quad<std::uint32_t> (&to)[1]) {
  Quad<std::uint16_t> first, second;
  std::memcpy(&first, from, sizeof(first));
  std::memcpy(&second, from + stride, sizeof(second));
  using Bits = Quad<std::uint32_t>;
  to[0] = __builtin_convertvector(first, Bits) | __builtin_convertvector(second, Bits) << 16;
}
inline __attribute__((always_inline)) void load_across(const Int8* from, Index stride, Quad<std::uint32_t> (&to)[4]) {
  typedef std::uint8_t Bytes __attribute__((vector_size(16)));
  typedef std::uint16_t Pairs __attribute__((vector_size(16)));
  Bytes a, b, c, d;
  std::memcpy(&a, from, sizeof(a));
  std::memcpy(&b, from + stride, sizeof(b));
  std::memcpy(&c, from + 2 * stride, sizeof(c));
  std::memcpy(&d, from + 3 * stride, sizeof(d));
  const auto low = [](Bytes x, Bytes y) {
    return (Pairs)__builtin_shufflevector(x, y, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  };
  const auto high = [](Bytes x, Bytes y) {
    return (Pairs)__builtin_shufflevector(x, y, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  };
  const Pairs ab[2] = {low(a, b), high(a, b)}, cd[2] = {low(c, d), high(c, d)};
  for (Index i = 0; i < 2; ++i) {
    to[2 * i] = (Quad<std::uint32_t>)__builtin_shufflevector(ab[i], cd[i], 0, 8, 1, 9, 2, 10, 3, 11);
    to[2 * i + 1] = (Quad<std::uint32_t>)__builtin_shufflevector(ab[i], cd[i], 4, 12, 5, 13, 6, 14, 7, 15);
  }
}

// Four elements of each of four rows, transposed: to[d][r] = rows[r][d], `width` apart.
template <class Stored, class Element>
inline void transpose_quad(const Stored* from, Index row_stride, Element* to, Index width) {
  using Vector = Quad<typename ElementTraits<Element>::Lane>;
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

// Panels [divide_up(rows, width)][depth][width]: `width` adjacent rows of the source, zeros in the other lanes.
// The depth is that of the source in elements, with zeros after the last number.
template <class Stored, class Element>
class PanelPacker {
  static constexpr Index quad = packing::quad, numbers = ElementTraits<Element>::numbers;
  static constexpr Index across = packing::quads_across<Element>;
  static constexpr Index line = cache_line / static_cast<Index>(sizeof(Stored));
  using Quad = packing::Quad<typename ElementTraits<Element>::Lane>;

 public:
  PanelPacker(Matrix<const Stored> source, Index rows, Index columns, Index width, Element* panels, Index panel_depth)
      : source_(source),
        rows_(rows),
        columns_(columns),
        depth_(depth_of<Element>(columns)),
        width_(width),
        panels_(panels),
        panel_size_(width * panel_depth) {}

  void run() const {
    if (rows_ % width_ != 0) {
      std::fill_n(panels_ + rows_ / width_ * panel_size_, width_ * depth_, Element{});
    }
    const Index step = source_.row_stride == 1 ? quad * across : quad;
    const Index whole_rows = rows_ / step * step, whole_depth = columns_ / (quad * numbers) * quad;
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
  Element* at(Index row) const { return panels_ + row / width_ * panel_size_ + row % width_; }

  // Both loops over quads use copies of the members, because the compiler must assume that stores may change members.

  // Adjacent rows: four columns are four streams to read, and fill whole cache lines of narrow panels.
  void copy_quads(Index rows, Index depth) const {
    const Matrix<const Stored> source = source_;
    const Index width = width_, next_panel = panel_size_, last_row = rows_ - 1;
    for (Index d = 0; d < depth; d += quad) {
      Element* panel = panels_ + d * width;
      for (Index row = 0, lane = 0; row < rows; row += quad * across) {
        if constexpr (across > 1) {
          // the next columns, one line each per step: a column is too short for hardware to prefetch
          const Index step = row / (quad * across), steps = line / (quad * across);
          for (Index i = 0; i < quad && d + quad < depth; ++i) {
            const Index column = (d + quad) * numbers + step % steps * quad + i;
            __builtin_prefetch(&source.at(std::min(step / steps * line, last_row), column));
          }
        }
        Element* to[across];
        for (Index which = 0; which < across; ++which) {
          to[which] = panel + lane;
          lane += quad;
          if (lane == width) {
            lane = 0;
            panel += next_panel;
          }
        }
        for (Index i = 0; i < quad; ++i) {
          Quad quads[across];
          packing::load_across(&source.at(row, (d + i) * numbers), source.column_stride, quads);
          for (Index which = 0; which < across; ++which) {
            packing::store(to[which] + i * width, quads[which]);
          }
        }
      }
    }
  }

  // Adjacent columns.
  void transpose_quads(Index rows, Index depth) const {
    const Matrix<const Stored> source = source_;
    const Index width = width_, last_column = columns_ - 1;
    for (Index row = 0; row < rows; row += quad) {
      Element* const to = at(row);
      for (Index d = 0; d < depth; d += quad) {
        if (row + quad < rows) {
          // the next four rows, one line per step: hardware does not prefetch across a jump to another row
          const Index step = d / quad, column = std::min(step / quad * line, last_column);
          __builtin_prefetch(&source.at(row + quad + step % quad, column));
        }
        packing::transpose_quad(&source.at(row, d * numbers), source.row_stride, to + d * width, width);
      }
    }
  }

  void copy_elements(Index row, Index row_end, Index begin, Index end) const {
    for (; row < row_end; ++row) {
      Element* const to = at(row);
      for (Index d = begin; d < end; ++d) {
        to[d * width_] = element(row, d);
      }
    }
  }

  Element element(Index row, Index d) const {
    if constexpr (numbers == 1) {
      return widen(source_.at(row, d));
    } else {
      constexpr Index bits = 32 / numbers;
      Element result = {};
      for (Index i = 0; i < std::min(numbers, columns_ - d * numbers); ++i) {
        const auto number = static_cast<std::uint32_t>(source_.at(row, d * numbers + i).bits);
        result.bits |= (number & ((1u << bits) - 1)) << i * bits;
      }
      return result;
    }
  }

  Matrix<const Stored> source_;
  Index rows_;
  Index columns_;
  Index depth_;
  Index width_;
  Element* panels_;
  Index panel_size_;
};

template <class Stored, class Element>
void pack_panels(Matrix<const Stored> source, Index rows, Index columns, Index width, Element* panels) {
  PanelPacker<Stored, Element>(source, rows, columns, width, panels, depth_of<Element>(columns)).run();
}

// The same into the first elements of panels [divide_up(rows, width)][panel_depth][width].
template <class Stored, class Element>
void pack_into_panels(Matrix<const Stored> source, Index rows, Index columns, Index width, Element* panels,
                      Index panel_depth) {
  PanelPacker<Stored, Element>(source, rows, columns, width, panels, panel_depth).run();
}

}  // namespace stm_fast
