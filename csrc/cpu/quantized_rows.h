// Rows of a quantized memory, and its scales applied to packed bytes: the memory is not copied.
#pragma once

#include <algorithm>

#include "stm_fast/memory_read.h"
#include "stm_fast/pack.h"

namespace stm_fast {

// Panels [divide_up(count, width)][Ck][width] of the keys from row `first` on: each times its scale, plus the mean of
// its slot. Lanes without a key get the scale and mean of the last: finite numbers that are not used.
template <class Stored>
void dequantize_keys(const ReadProblem<Stored>& problem, Index object, Index first, Index count, Index width,
                     float* panels) {
  using packing::Quad, packing::quad;
  const Quantization& given = problem.quantization;
  for (Index j = 0; j < count; j += quad) {
    Quad<float> scale;
    Matrix<const float> mean[quad];
    for (Index i = 0; i < quad; ++i) {
      const Index row = first + std::min(j + i, count - 1);
      scale[i] = given.key_scale[object].at(row, 0);
      mean[i] = given.key_mean[object].from_row(row / given.slot_rows);
    }
    float* const keys = panels + j / width * width * problem.key_dim + j % width;
    for (Index c = 0; c < problem.key_dim; ++c) {
      const Quad<float> means = {mean[0].at(0, c), mean[1].at(0, c), mean[2].at(0, c), mean[3].at(0, c)};
      Quad<float> four;
      packing::load(keys + c * width, four);
      packing::store(keys + c * width, four * scale + means);
    }
  }
}

// The values of an object from a row to the end of its slot.
template <class Stored>
Matrix<const Stored> values_in_slot(const ReadProblem<Stored>& problem, Index object, Index row) {
  const Quantization& given = problem.quantization;
  Matrix<const Stored> values = problem.value[object];
  values.data += row / given.slot_rows * given.value_slot_stride;
  return values.from_row(row % given.slot_rows);
}

// Panels [divide_up(value_dim, width)][count][width] of the values from row `first` on, contiguous channels: each times
// the scale of its channel in its slot.
template <class Stored>
void pack_dequantized_values(const ReadProblem<Stored>& problem, Index object, Index first, Index count,
                             Index value_dim, Index width, float* panels) {
  using packing::Quad, packing::quad;
  const Quantization& given = problem.quantization;
  for (Index begin = 0, end; begin < count; begin = end) {
    const Index slot = (first + begin) / given.slot_rows;
    end = std::min(count, (slot + 1) * given.slot_rows - first);
    pack_into_panels(values_in_slot(problem, object, first + begin).transposed(), value_dim, end - begin, width,
                     panels + begin * width, count);
    for (Index channel = 0; channel < value_dim; channel += quad) {
      Quad<float> scale = {};
      for (Index i = 0; i < std::min(quad, value_dim - channel); ++i) {
        scale[i] = given.value_scale[object].at(slot, channel + i);
      }
      float* const values = panels + channel / width * width * count + channel % width;
      for (Index j = begin; j < end; ++j) {
        Quad<float> four;
        packing::load(values + j * width, four);
        packing::store(values + j * width, four * scale);
      }
    }
  }
}

}  // namespace stm_fast
