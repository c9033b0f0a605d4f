// The source of the tile kernels. It is included once for each instruction set, so it has no include guard.
//
// The including file defines
//   STM_FAST_ISA           namespace of the instruction set
//   STM_FAST_TARGET        function attribute that selects it
//   STM_FAST_VECTOR_BYTES  size of a vector register
//   STM_FAST_GROUP_ROWS    rows of C kept in registers at once
//   STM_FAST_VECTORS       vectors in a row of C kept in registers at once
// GCC and Clang vector extensions only: no intrinsics, no -m flags. Every function carries the target attribute itself,
// because templates do not inherit it from a pragma.
#include <cmath>
#include <cstdint>

#include "stm_fast/tile_kernels.h"

#define STM_FAST_INLINE STM_FAST_TARGET inline __attribute__((always_inline))
#define STM_FAST_UNROLL _Pragma("GCC unroll 16")

namespace stm_fast::STM_FAST_ISA {

constexpr Index group_rows = STM_FAST_GROUP_ROWS;
constexpr Index vectors = STM_FAST_VECTORS;

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(STM_FAST_VECTOR_BYTES), aligned(sizeof(T)), may_alias));
};
template <class T>
using Vector = typename VectorOf<T>::type;
template <class T>
constexpr Index width = STM_FAST_VECTOR_BYTES / static_cast<Index>(sizeof(T));
template <class T>
constexpr Index lanes = vectors * width<T>;

template <class T>
STM_FAST_INLINE Vector<T> load(const T* p) {
  return *reinterpret_cast<const Vector<T>*>(p);
}
template <class T>
STM_FAST_INLINE void store(T* p, Vector<T> x) {
  *reinterpret_cast<Vector<T>*>(p) = x;
}
template <class T>
STM_FAST_INLINE Vector<T> fill(T x) {
  return x - Vector<T>{};
}

// e^x for x <= 0. Float: x = n log 2 + r with |r| <= log(2) / 2 (log 2 in two parts, so that r is exact enough), then a
// polynomial of degree 6 fitted to the smallest relative error: within 1e-7 of the true value. Below -87 the result is
// 0 (no denormal results). NaN stays NaN.
STM_FAST_INLINE Vector<float> exp(Vector<float> x) {
  using Bits = Vector<std::int32_t>;
  const Vector<float> smallest = fill(-87.0f);
  // adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits
  const Vector<float> rounder = fill(12582912.0f);
  const Vector<float> clamped = x < smallest ? smallest : x;
  const Vector<float> shifted = clamped * fill(1.44269504f) + rounder;
  const Vector<float> n = shifted - rounder;
  const Vector<float> r = clamped - n * fill(0.693359375f) - n * fill(-2.12194440e-4f);
  Vector<float> p = fill(1.381468119e-3f);
  p = p * r + fill(8.368749049e-3f);
  p = p * r + fill(4.166838481e-2f);
  p = p * r + fill(1.666652036e-1f);
  p = p * r + fill(4.999999348e-1f);
  p = p * r + fill(1.0f);
  p = p * r + fill(1.0f);
  const Bits power = reinterpret_cast<Bits>(p) + (reinterpret_cast<Bits>(shifted) << 23);
  return x < smallest ? fill(0.0f) : reinterpret_cast<Vector<float>>(power);
}

STM_FAST_INLINE Vector<double> exp(Vector<double> x) {
  Vector<double> result;
  for (Index i = 0; i < width<double>; ++i) {
    result[i] = std::exp(x[i]);
  }
  return result;
}

enum class Update { assign, add, rescale };

// One group of rows: the tile of C stays in registers over the whole depth. `scale` is one number for Update::assign,
// one a lane for Update::rescale.
template <class T, Update update, bool packed>
STM_FAST_INLINE void multiply_group(const Product<T>& product, const T* a, T* c, const T* scale) {
  Vector<T> sum[group_rows][vectors];
  STM_FAST_UNROLL for (Index i = 0; i < group_rows; ++i) {
    STM_FAST_UNROLL for (Index j = 0; j < vectors; ++j) {
      const T* old = c + i * product.c_stride + j * width<T>;
      if constexpr (update == Update::assign) {
        sum[i][j] = Vector<T>{};
      } else if constexpr (update == Update::add) {
        sum[i][j] = load(old);
      } else {
        sum[i][j] = load(scale + j * width<T>) * load(old);
      }
    }
  }
  const T* b = product.b;
  for (Index k = 0; k < product.depth; ++k, b += product.b_stride) {
    Vector<T> right[vectors];
    STM_FAST_UNROLL for (Index j = 0; j < vectors; ++j) { right[j] = load(b + j * width<T>); }
    STM_FAST_UNROLL for (Index i = 0; i < group_rows; ++i) {
      const Vector<T> left = fill(packed ? a[k * group_rows + i] : a[i * product.a_stride + k]);
      STM_FAST_UNROLL for (Index j = 0; j < vectors; ++j) { sum[i][j] += left * right[j]; }
    }
  }
  STM_FAST_UNROLL for (Index i = 0; i < group_rows; ++i) {
    STM_FAST_UNROLL for (Index j = 0; j < vectors; ++j) {
      const Vector<T> result = update == Update::assign ? *scale * sum[i][j] : sum[i][j];
      store(c + i * product.c_stride + j * width<T>, result);
    }
  }
}

template <class T, Update update, bool packed>
STM_FAST_TARGET void multiply(const Product<T>& product, const T* scale) {
  for (Index row = 0; row < product.rows; row += group_rows) {
    const T* a = product.a + row * (packed ? product.depth : product.a_stride);
    multiply_group<T, update, packed>(product, a, product.c + row * product.c_stride, scale);
  }
}

template <class T>
STM_FAST_TARGET void scaled_product(const Product<T>& product, T scale) {
  multiply<T, Update::assign, true>(product, &scale);
}
template <class T>
STM_FAST_TARGET void add_product(const Product<T>& product) {
  multiply<T, Update::add, true>(product, nullptr);
}
template <class T>
STM_FAST_TARGET void rescale_and_add_product(const Product<T>& product, const T* scale) {
  multiply<T, Update::rescale, true>(product, scale);
}
template <class T>
STM_FAST_TARGET void add_product_of_rows(const Product<T>& product) {
  multiply<T, Update::add, false>(product, nullptr);
}

template <class T>
STM_FAST_TARGET void softmax_step(T* scores, Index rows, Index stride, const RunningSoftmax<T>& state) {
  for (Index j = 0; j < lanes<T>; j += width<T>) {
    const Vector<T> before = load(state.largest + j);
    Vector<T> largest = before;
    for (Index i = 0; i < rows; ++i) {
      const Vector<T> score = load(scores + i * stride + j);
      largest = score > largest ? score : largest;
    }
    // where nothing counts yet the largest is -inf, and -inf - -inf would be NaN
    const Vector<T> shift = largest == fill(-T(INFINITY)) ? fill(T(0)) : largest;
    const Vector<T> rescale = exp(before - shift);
    Vector<T> total = rescale * load(state.total + j);
    for (Index i = 0; i < rows; ++i) {
      const Vector<T> weight = exp(load(scores + i * stride + j) - shift);
      store(scores + i * stride + j, weight);
      total += weight;
    }
    store(state.largest + j, largest);
    store(state.total + j, total);
    store(state.rescale + j, rescale);
  }
}

template <class T>
STM_FAST_TARGET void weights(T* scores, Index rows, Index stride, const T* largest, const T* factor) {
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < lanes<T>; j += width<T>) {
      T* score = scores + i * stride + j;
      store(score, exp(load(score) - load(largest + j)) * load(factor + j));
    }
  }
}

template <class T>
STM_FAST_TARGET void softmax_backward(const T* weights, T* grad_weights, Index rows, Index stride, const T* delta) {
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < lanes<T>; j += width<T>) {
      const Index at = i * stride + j;
      store(grad_weights + at, load(weights + at) * (load(grad_weights + at) - load(delta + j)));
    }
  }
}

template <class T>
constexpr TileKernels<T> table = {
    group_rows,
    lanes<T>,
    scaled_product<T>,
    add_product<T>,
    rescale_and_add_product<T>,
    add_product_of_rows<T>,
    softmax_step<T>,
    weights<T>,
    softmax_backward<T>,
};

}  // namespace stm_fast::STM_FAST_ISA
