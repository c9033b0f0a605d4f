// Views of strided matrices: a pointer and two strides, in elements.
#pragma once

#include <cstdint>

namespace stm_fast {

using Index = std::int64_t;

inline Index divide_up(Index a, Index b) { return (a + b - 1) / b; }
inline Index round_up(Index a, Index b) { return divide_up(a, b) * b; }

template <class Element>
struct Matrix {
  Element* data;
  Index row_stride;
  Index column_stride;

  Element& at(Index row, Index column) const { return data[row * row_stride + column * column_stride]; }
  Matrix from_row(Index row) const { return {data + row * row_stride, row_stride, column_stride}; }
  Matrix transposed() const { return {data, column_stride, row_stride}; }
};

// A batch of matrices [batch, rows, columns], or one matrix shared by the whole batch.
template <class Element>
struct Batch {
  Element* data = nullptr;
  Index batch_stride = 0;
  Index row_stride = 0;
  Index column_stride = 0;
  bool shared = true;  // false for an expanded batch: each object has its own gradient

  explicit operator bool() const { return data != nullptr; }
  Matrix<Element> operator[](Index b) const { return {data + b * batch_stride, row_stride, column_stride}; }
};

}  // namespace stm_fast
