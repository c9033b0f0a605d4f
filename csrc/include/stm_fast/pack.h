// Packing: strided rows of any stored type into panels of accumulators that the tile kernels read straight through.
#pragma once

#include <algorithm>

#include "stm_fast/matrix.h"
#include "stm_fast/number.h"

namespace stm_fast {

// One panel [depth][width]: rows 0..rows of the source side by side, zeros in the lanes beyond.
template <class Stored>
void pack_panel(Matrix<const Stored> source, Index rows, Index depth, Index width, Accumulator<Stored>* panel) {
  if (rows < width) {
    std::fill_n(panel, depth * width, Accumulator<Stored>(0));
  }
  if (source.row_stride == 1) {
    for (Index d = 0; d < depth; ++d) {
      const Stored* from = source.data + d * source.column_stride;
      for (Index r = 0; r < rows; ++r) {
        panel[d * width + r] = widen(from[r]);
      }
    }
    return;
  }
  // a few columns at a time, so that the panel is filled while it is in the nearest cache
  constexpr Index block = 16;
  for (Index start = 0; start < depth; start += block) {
    const Index end = std::min(depth, start + block);
    for (Index r = 0; r < rows; ++r) {
      for (Index d = start; d < end; ++d) {
        panel[d * width + r] = widen(source.at(r, d));
      }
    }
  }
}

// Panels [divide_up(rows, width)][depth][width], one after the other.
template <class Stored>
void pack_panels(Matrix<const Stored> source, Index rows, Index depth, Index width, Accumulator<Stored>* panels) {
  for (Index row = 0; row < rows; row += width) {
    pack_panel(source.from_row(row), std::min(width, rows - row), depth, width, panels + row * depth);
  }
}

}  // namespace stm_fast
