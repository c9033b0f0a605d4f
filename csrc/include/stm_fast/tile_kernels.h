// The inner loops of the engine, compiled once for each instruction set and chosen at run time.
//
// The environment variable STM_FAST_CPU=portable (or avx2, ...) selects another set than the best. The set "emulated"
// has the tiles of AVX-512 and the arithmetic of its products of bfloat16 and of bytes on any machine, "emulated_amx"
// the tiles of AMX: slow, for tests.
//
// Every product has the form C += A B with the columns of B and C in SIMD lanes, `lanes` columns at a time:
//   A  [rows, depth]   read one element at a time and broadcast; packed: [row group][depth][group_rows], or row by row
//   B  [depth, lanes]  rows b_stride apart
//   C  [rows, lanes]   rows c_stride apart; rows are padded to whole groups of `group_rows`
#pragma once

#include <cstddef>
#include <type_traits>

#include "stm_fast/element.h"
#include "stm_fast/matrix.h"

namespace stm_fast {

template <class Element>
struct Product {
  Index rows;
  Index depth;  // in elements
  const Element* a;
  Index a_stride;  // of a row, if A is not packed
  const Element* b;
  Index b_stride;
  Sum<Element>* c;
  Index c_stride;
  Index unused = 0;  // lanes of B and C at the end that need not be read and written, whole vectors of them
};

// The running softmax of queries (Milakov and Gimelshein 2018, algorithm 3).
template <class T>
struct RunningSoftmax {
  T* largest;  // [queries] largest score so far
  T* total;    // [queries] sum of the weights relative to it
  T* rescale;  // [queries] out: factor for sums from before this block
};

// The order in which rows are read: in runs of `run_rows`, `step` elements from a row to the next, and `run_step` from
// the start of a run to that of the next. Rows of a run that are far apart are as many streams, which memory serves
// faster than one.
struct RowOrder {
  static constexpr Index run_rows = 16;
  Index step;
  Index run_step;

  bool in_memory_order() const { return run_step == run_rows * step; }
  Index offset(Index row) const { return row / run_rows * run_step + row % run_rows * step; }
};

// scores[query][row] = scale * <query, key>, with features in SIMD lanes: keys are read in place.
template <class Stored>
struct RowScores {
  using T = Accumulator<Stored>;
  Index queries;  // as in StripProduct
  Index rows;
  Index features;  // whole vectors
  const T* query;  // [queries][features]
  const Stored* keys;
  RowOrder order;
  T scale;
  T* scores;  // [queries][rows], each padded to whole vectors
  Index scores_stride;
};

// Adjacent bytes.
struct Bytes {
  const std::byte* data = nullptr;
  Index count = 0;
};

// sums = rescale[query] * sums + weights * values (`rescale` null: sums = weights * values), with channels in SIMD
// lanes: values are read in place, and no lane is wasted on absent queries. Channels are processed in strips of
// `strip_lanes`.
template <class Stored>
struct StripProduct {
  using T = Accumulator<Stored>;
  Index queries;  // 1, 2 or 4, or padded to whole groups of `group_rows`
  Index rows;
  Index strips;
  const T* weights;  // [queries][rows]
  Index weights_stride;
  const Stored* values;  // [strips][rows][strip_lanes] by the strides below
  Index strip_stride;    // from a strip to the next
  RowOrder order;        // of the rows
  Index rows_after;      // rows that follow in memory and will be read next
  const T* rescale;      // [queries] or null
  T* sums;               // [strips][queries][strip_lanes]
  Bytes soon = {};       // that are read after the rows: they are prefetched
};

// The kernels that read rows of Stored in place.
template <class Stored>
struct RowKernels {
  void (*scores)(const RowScores<Stored>&);
  void (*rescale_and_add_strips)(const StripProduct<Stored>&);
};

// The kernels of the dense forward read, and the product of the backward read that can be of pairs, too.
template <class Element>
struct ForwardKernels {
  using T = Sum<Element>;

  Index group_rows;
  Index lanes;

  // C = scale * A B, A packed
  void (*scaled_product)(const Product<Element>&, T scale);
  // C = scale[lane] * C + A B, A packed, all lanes used
  void (*rescale_and_add_product)(const Product<Element>&, const T* scale);

  // Turns scores [rows, lanes] into weights exp(score - largest) in place, after updating `largest`: elements of depth
  // `rows`, with the stride of the scores.
  void (*softmax_step)(T* scores, Index rows, Index stride, const RunningSoftmax<T>&);

  // Rearranges groups of packed rows of A, in place, as these products read them; null if they read them as packed.
  void (*arrange)(Element* a, Index groups, Index depth);

  void (*add_product_of_rows)(const Product<Element>&);  // C += A B, A row by row; null if rows are arranged
};

template <class T>
struct TileKernels : ForwardKernels<T> {
  Index vector_lanes;  // of one vector
  Index strip_lanes;

  // Turns scores [queries, rows], `stride` apart, into weights exp(score - largest): the transposed softmax_step. May
  // write past their end up to the next whole vector.
  void (*softmax_step_of_rows)(T* scores, Index queries, Index rows, Index stride, const RunningSoftmax<T>&);
  RowKernels<T> rows;
  RowKernels<BFloat16> bfloat16_rows;
  template <class Stored>
  const RowKernels<Stored>& of_rows() const {
    if constexpr (std::is_same_v<Stored, BFloat16>) {
      return bfloat16_rows;
    } else {
      return rows;
    }
  }
  // row[strips * strip_lanes] = scale * the sums of one query, whose strips are `stride` apart; false if a number is
  // not finite.
  bool (*scale_strips)(const T* sums, Index strips, Index stride, T scale, T* row);

  void (*add_product)(const Product<T>&);  // C += A B, A packed, all lanes used

  // Turns scores [rows, lanes] into weights exp(score - largest[lane]) * factor[lane].
  void (*weights)(T* scores, Index rows, Index stride, const T* largest, const T* factor);
  // Turns grad_weights [rows, lanes] into weights * (grad_weights - delta[lane]): the softmax backward.
  void (*softmax_backward)(const T* weights, T* grad_weights, Index rows, Index stride, const T* delta);
};

// Directions that are taken out of queries before they are rounded to bytes; their products are of floats.
template <class Element>
inline constexpr Index directions = std::is_same_v<Element, ByteQuad> ? 3 : 0;

// Scores from products of quantized numbers:
//   C[row][lane] = row_scale[row] * lane_scale[lane] * (start[row] + (A B)[row][lane]) + lane_offset[lane]
//                  + sum_t row_terms[row][t] * lane_terms[t][lane]
template <class Element>
struct ScoreScales {
  const Register<Element>* start;
  const float* row_scale;
  const float* row_terms;  // [rows][directions]
  const float* lane_scale;
  const float* lane_offset;
  const float* lane_terms;  // [directions][lanes]
};

// A running softmax whose weights are relative to the largest score of their own block of rows.
struct BlockSoftmax {
  float* largest;  // as in RunningSoftmax
  float* total;
  float* rescale;
  float* part_scale;  // [queries] out: factor for sums of this block
};

// The kernels of the forward read of a quantized memory. Where A and B are bytes, those of B have no sign.
template <class Element>
struct QuantizedKernels {
  Index group_rows;
  Index lanes;

  void (*scores)(const Product<Element>&, const ScoreScales<Element>&);
  // Turns scores [rows, lanes] into weights in place, as ForwardKernels::softmax_step does; sums of weights times
  // values are to be multiplied by `part_scale`.
  void (*softmax_step)(float* scores, Index rows, Index stride, const BlockSoftmax&);
  // C = rescale[lane] * C + row_scale[row] * part_scale[lane] * A B, A packed
  void (*add_values)(const Product<Element>&, const float* row_scale, const BlockSoftmax&);

  // C = scale * A B of floats, with the same groups of rows and the same lanes
  void (*scaled_product)(const Product<float>&, float scale);
  // as in ForwardKernels
  void (*arrange)(Element* a, Index groups, Index depth);
};

// The kernels in use; T is float or double. Throws std::runtime_error if STM_FAST_CPU names none that this machine has.
template <class T>
const TileKernels<T>& tile_kernels();

// Kernels for products of bfloat16; null if the machine has none that are faster than products of floats.
const ForwardKernels<BFloat16Pair>* pair_kernels();

// Kernels for quantized numbers, from products of bytes (int8) or of bfloat16 (fp8, each of whose numbers is a bfloat16
// number); null as above.
template <class Element>
const QuantizedKernels<Element>* quantized_kernels();

// Whether convolutions of bfloat16 numbers are made by these kernels. With AMX, which PyTorch's use, they are left to
// PyTorch; which of them are faster was not measured.
bool convolves_bfloat16();

// The name of the set in use.
const char* instructions();

}  // namespace stm_fast
