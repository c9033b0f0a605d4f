// The inner loops of the engine, compiled once for each instruction set and chosen at run time.
//
// Every product has the form C += A B with the columns of B and C in SIMD lanes, `lanes` columns at a time:
//   A  [rows, depth]   read one element at a time and broadcast; packed: [row group][depth][group_rows], or row by row
//   B  [depth, lanes]  rows b_stride apart
//   C  [rows, lanes]   rows c_stride apart; rows are padded to whole groups of `group_rows`
#pragma once

#include "stm_fast/matrix.h"

namespace stm_fast {

template <class T>
struct Product {
  Index rows;
  Index depth;
  const T* a;
  Index a_stride;  // of a row, where A is not packed
  const T* b;
  Index b_stride;
  T* c;
  Index c_stride;
};

// The running softmax of `lanes` queries (Milakov and Gimelshein 2018, algorithm 3).
template <class T>
struct RunningSoftmax {
  T* largest;  // [lanes] largest score so far
  T* total;    // [lanes] sum of the weights relative to it
  T* rescale;  // [lanes] out: what sums made before this block are to be multiplied by
};

template <class T>
struct TileKernels {
  Index group_rows;
  Index lanes;

  void (*scaled_product)(const Product<T>&, T scale);                  // C = scale * A B, A packed
  void (*add_product)(const Product<T>&);                              // C += A B, A packed
  void (*rescale_and_add_product)(const Product<T>&, const T* scale);  // C = scale[lane] * C + A B, A packed
  void (*add_product_of_rows)(const Product<T>&);                      // C += A B, A row by row

  // Scores [rows, lanes] become weights exp(score - largest), after `largest` has taken them in.
  void (*softmax_step)(T* scores, Index rows, Index stride, const RunningSoftmax<T>&);
  // Scores [rows, lanes] become weights exp(score - largest[lane]) * factor[lane].
  void (*weights)(T* scores, Index rows, Index stride, const T* largest, const T* factor);
  // grad_weights [rows, lanes] become weights * (grad_weights - delta[lane]): the softmax backward.
  void (*softmax_backward)(const T* weights, T* grad_weights, Index rows, Index stride, const T* delta);
};

// The best kernels for this machine; T is float or double.
template <class T>
const TileKernels<T>& tile_kernels();

}  // namespace stm_fast
