// The source of the tile kernels. It is included once for each instruction set, so it has no include guard.
//
// The including file defines
//   STM_FAST_ISA           namespace of the instruction set
//   STM_FAST_TARGET        function attribute that selects it
//   STM_FAST_VECTOR_BYTES  size of a vector register
//   STM_FAST_GROUP_ROWS    rows of C kept in registers at once
//   STM_FAST_VECTORS       vectors in a row of C kept in registers at once
//   STM_FAST_MULTIPLY_ADD_PAIRS(sum, left, right)  if it has products of bfloat16 numbers: sum plus the products of
//                          both halves
//   STM_FAST_MULTIPLY_ADD_QUADS(sum, left, right)  if it has products of bytes: sum, of 32 bits, plus the four products
//                          of the bytes of left, with a sign, and those of right, without
// GCC and Clang vector extensions only: no intrinsics, no -m flags. Every function carries the target attribute itself,
// because templates do not inherit it from a pragma.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "stm_fast/scratch.h"
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
STM_FAST_INLINE Vector<std::uint32_t> load(const BFloat16Pair* p) { return load(&p->bits); }
STM_FAST_INLINE Vector<std::uint32_t> load(const ByteQuad* p) { return load(&p->bits); }
template <class T>
STM_FAST_INLINE void store(T* p, Vector<T> x) {
  *reinterpret_cast<Vector<T>*>(p) = x;
}
template <class T>
STM_FAST_INLINE Vector<T> fill(T x) {
  return x - Vector<T>{};
}
STM_FAST_INLINE Vector<std::uint32_t> fill(BFloat16Pair x) { return fill(x.bits); }
STM_FAST_INLINE Vector<std::uint32_t> fill(ByteQuad x) { return fill(x.bits); }

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

// sum + left * right; of pairs and quads, all products.
template <class Lanes>
STM_FAST_INLINE Lanes multiply_add(Lanes sum, Lanes left, Lanes right) {
  return sum + left * right;
}
#if defined(STM_FAST_MULTIPLY_ADD_PAIRS)
STM_FAST_INLINE Vector<float> multiply_add(Vector<float> sum, Vector<std::uint32_t> left, Vector<std::uint32_t> right) {
  return STM_FAST_MULTIPLY_ADD_PAIRS(sum, left, right);
}
#endif
#if defined(STM_FAST_MULTIPLY_ADD_QUADS)
STM_FAST_INLINE Vector<std::int32_t> multiply_add(Vector<std::int32_t> sum, Vector<std::uint32_t> left,
                                                  Vector<std::uint32_t> right) {
  return STM_FAST_MULTIPLY_ADD_QUADS(sum, left, right);
}
#endif

enum class Update { assign, add, rescale };

// One vector of C from one of the product. `scale` is one number for Update::assign, which all vectors share, and one
// per lane for Update::rescale.
template <Update update, class T>
STM_FAST_INLINE void update_sum(T* at, Vector<T> sum, const T* scale, Index lane) {
  if constexpr (update == Update::assign) {
    store(at, *scale * sum);
  } else if constexpr (update == Update::add) {
    store(at, load(at) + sum);
  } else {
    store(at, load(scale + lane) * load(at) + sum);
  }
}

// Adds the product of one group of rows to `sum`, which stays in registers over the whole depth.
template <class Element, bool packed, Index vectors>
STM_FAST_INLINE void add_group(const Product<Element>& product, const Element* a,
                               Vector<Register<Element>> (&sum)[group_rows][vectors]) {
  using T = Register<Element>;
  const Element* b = product.b;
  for (Index k = 0; k < product.depth; ++k, b += product.b_stride) {
    decltype(load(b)) right[vectors];
    STM_FAST_UNROLL for (Index j = 0; j < vectors; ++j) { right[j] = load(b + j * width<T>); }
    STM_FAST_UNROLL for (Index i = 0; i < group_rows; ++i) {
      const auto left = fill(packed ? a[k * group_rows + i] : a[i * product.a_stride + k]);
      STM_FAST_UNROLL for (Index j = 0; j < vectors; ++j) { sum[i][j] = multiply_add(sum[i][j], left, right[j]); }
    }
  }
}

// One group of rows: the product is added to the previous C at the end. So its first sums do not wait for the cache,
// and a sum of many blocks is rounded like a tree.
template <class Element, Update update, bool packed, Index vectors>
STM_FAST_INLINE void multiply_group(const Product<Element>& product, const Element* a, Sum<Element>* c,
                                    const Sum<Element>* scale) {
  using T = Sum<Element>;
  Vector<T> sum[group_rows][vectors] = {};
  add_group<Element, packed, vectors>(product, a, sum);
  STM_FAST_UNROLL for (Index i = 0; i < group_rows; ++i) {
    STM_FAST_UNROLL for (Index j = 0; j < vectors; ++j) {
      update_sum<update, T>(c + i * product.c_stride + j * width<T>, sum[i][j], scale, j * width<T>);
    }
  }
}

template <class Element, Update update, bool packed, Index vectors>
STM_FAST_TARGET void multiply(const Product<Element>& product, const Sum<Element>* scale) {
  for (Index row = 0; row < product.rows; row += group_rows) {
    const Element* a = product.a + row * (packed ? product.depth : product.a_stride);
    multiply_group<Element, update, packed, vectors>(product, a, product.c + row * product.c_stride, scale);
  }
}

// The same without vectors of unused lanes.
template <class Element, Update update, bool packed, Index used = vectors>
STM_FAST_TARGET void multiply_used(const Product<Element>& product, const Sum<Element>* scale) {
  if constexpr (used > 1) {
    if (product.unused >= (vectors - used + 1) * width<Sum<Element>>) {
      return multiply_used<Element, update, packed, used - 1>(product, scale);
    }
  }
  multiply<Element, update, packed, used>(product, scale);
}

template <class Element>
STM_FAST_TARGET void scaled_product(const Product<Element>& product, Sum<Element> scale) {
  multiply_used<Element, Update::assign, true>(product, &scale);
}
template <class T>
STM_FAST_TARGET void add_product(const Product<T>& product) {
  multiply<T, Update::add, true, vectors>(product, nullptr);
}
template <class Element>
STM_FAST_TARGET void rescale_and_add_product(const Product<Element>& product, const Sum<Element>* scale) {
  multiply<Element, Update::rescale, true, vectors>(product, scale);
}
template <class Element>
STM_FAST_TARGET void add_product_of_rows(const Product<Element>& product) {
  multiply_used<Element, Update::add, false>(product, nullptr);
}

// Replaces the scores of one vector of queries by their weights; returns the sum of the weights.
template <class T>
STM_FAST_INLINE Vector<T> write_weights(T* scores, T* weights, Index rows, Index stride, Vector<T> shift) {
  Vector<T> total = {};
  for (Index i = 0; i < rows; ++i) {
    const Vector<T> weight = exp(load(scores + i * stride) - shift);
    store(weights + i * stride, weight);
    total += weight;
  }
  return total;
}

// The upper half is x as a bfloat16, rounded to nearest, ties to even; NaN stays NaN.
STM_FAST_INLINE Vector<std::uint32_t> round_upper_half(Vector<float> x) {
  using Bits = Vector<std::uint32_t>;
  const Bits bits = reinterpret_cast<Bits>(x);
  const Bits rounded = bits + 0x7fffu + (bits >> 16 & 1u);
  return x == x ? rounded : fill(std::uint32_t{0x7fc00000});
}

// The same in pairs of rows; the second of an odd last pair is 0. The sum is that of the unrounded weights.
STM_FAST_INLINE Vector<float> write_weights(float* scores, BFloat16Pair* weights, Index rows, Index stride,
                                            Vector<float> shift) {
  Vector<float> total = {};
  for (Index i = 0; i < rows; i += 2) {
    const Vector<float> first = exp(load(scores + i * stride) - shift);
    const Vector<float> second = i + 1 < rows ? exp(load(scores + (i + 1) * stride) - shift) : Vector<float>{};
    store(&weights[i / 2 * stride].bits, round_upper_half(first) >> 16 | (round_upper_half(second) & 0xffff0000u));
    total += first;
    total += second;
  }
  return total;
}

template <class Element>
STM_FAST_TARGET void softmax_step(Sum<Element>* scores, Index rows, Index stride,
                                  const RunningSoftmax<Sum<Element>>& state) {
  using T = Sum<Element>;
  for (Index j = 0; j < lanes<T>; j += width<T>) {
    const Vector<T> before = load(state.largest + j);
    Vector<T> largest = before;
    for (Index i = 0; i < rows; ++i) {
      const Vector<T> score = load(scores + i * stride + j);
      largest = score > largest ? score : largest;
    }
    // without valid rows so far the largest is -inf, and -inf - -inf would be NaN
    const Vector<T> shift = largest == fill(-T(INFINITY)) ? fill(T(0)) : largest;
    const Vector<T> rescale = exp(before - shift);
    auto* const weights = reinterpret_cast<Element*>(scores + j);
    const Vector<T> total = write_weights(scores + j, weights, rows, stride, shift);
    store(state.largest + j, largest);
    store(state.total + j, rescale * load(state.total + j) + total);
    store(state.rescale + j, rescale);
  }
}

template <Index distance, class Lanes, int... lane>
STM_FAST_INLINE Lanes exchange_lanes(Lanes x, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(x, x, lane ^ distance...);
}

// The sum of all lanes, or the largest.
template <class T, bool largest, Index distance = width<T> / 2>
STM_FAST_INLINE T across_lanes(Vector<T> x) {
  if constexpr (distance == 0) {
    return x[0];
  } else {
    const Vector<T> other = exchange_lanes<distance>(x, std::make_integer_sequence<int, width<T>>());
    return across_lanes<T, largest, distance / 2>(largest ? (other > x ? other : x) : x + other);
  }
}

// The same for one query with contiguous scores.
template <class T>
STM_FAST_INLINE void softmax_step_of_row(T* scores, Index rows, T* largest, T* total, T* rescale) {
  const Index padded = round_up(rows, width<T>);
  for (Index i = rows; i < padded; ++i) {
    scores[i] = -T(INFINITY);
  }
  Vector<T> most = fill(*largest);
  for (Index i = 0; i < padded; i += width<T>) {
    const Vector<T> score = load(scores + i);
    most = score > most ? score : most;
  }
  const T before = *largest;
  *largest = across_lanes<T, true>(most);
  const Vector<T> shift = fill(*largest == -T(INFINITY) ? T(0) : *largest);
  Vector<T> sum = {};
  for (Index i = 0; i < padded; i += width<T>) {
    const Vector<T> weight = exp(load(scores + i) - shift);
    store(scores + i, weight);
    sum += weight;
  }
  *rescale = exp(fill(before) - shift)[0];
  *total = *rescale * *total + across_lanes<T, false>(sum);
}

template <class T>
STM_FAST_TARGET void softmax_step_of_rows(T* scores, Index queries, Index rows, Index stride,
                                          const RunningSoftmax<T>& state) {
  for (Index i = 0; i < queries; ++i) {
    softmax_step_of_row(scores + i * stride, rows, state.largest + i, state.total + i, state.rescale + i);
  }
}

// One vector of stored numbers, widened.
template <class T>
STM_FAST_INLINE Vector<T> load_wide(const T* p) {
  return load(p);
}
STM_FAST_INLINE Vector<float> load_wide(const BFloat16* p) {
  typedef std::uint16_t Halves __attribute__((vector_size(STM_FAST_VECTOR_BYTES / 2)));
  Halves bits;
  std::memcpy(&bits, p, sizeof(bits));
  return reinterpret_cast<Vector<float>>(__builtin_convertvector(bits, Vector<std::uint32_t>) << 16);
}

// Of the lanes of two vectors, in blocks of `block`, the even and the odd blocks added.
template <Index block, class Lanes, int... lane>
STM_FAST_INLINE Lanes add_neighbors(Lanes left, Lanes right, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(left, right, lane / block * 2 * block + lane % block...) +
         __builtin_shufflevector(left, right, lane / block * 2 * block + block + lane % block...);
}

// Halves the number of vectors until there is one; the sums of vector i end up in the i-th part of its lanes.
template <Index count, Index block, class T>
STM_FAST_INLINE Vector<T> add_lanes(Vector<T>* sums) {
  if constexpr (count == 1) {
    return sums[0];
  } else {
    STM_FAST_UNROLL for (Index i = 0; i < count / 2; ++i) {
      sums[i] = add_neighbors<block>(sums[2 * i], sums[2 * i + 1], std::make_integer_sequence<int, width<T>>());
    }
    return add_lanes<count / 2, block / 2, T>(sums);
  }
}

// The scores of one vector of rows, the last of which may be repeated; a few rows and queries at a time.
template <class Stored, Index queries>
STM_FAST_INLINE void score_vector(const RowScores<Stored>& product, Index row, const Accumulator<Stored>* query,
                                  Accumulator<Stored>* scores) {
  using T = Accumulator<Stored>;
  constexpr Index rows = width<T> < 4 ? width<T> : 4, parts = width<T> / rows;
  Vector<T> partial[queries][parts];
  for (Index part = 0; part < parts; ++part) {
    const Stored* keys[rows];
    STM_FAST_UNROLL for (Index i = 0; i < rows; ++i) {
      keys[i] = product.keys + product.order.offset(std::min(row + part * rows + i, product.rows - 1));
    }
    Vector<T> sum[queries][rows] = {};
    for (Index f = 0; f < product.features; f += width<T>) {
      Vector<T> left[rows];
      STM_FAST_UNROLL for (Index i = 0; i < rows; ++i) { left[i] = load_wide(keys[i] + f); }
      STM_FAST_UNROLL for (Index q = 0; q < queries; ++q) {
        const Vector<T> right = load(query + q * product.features + f);
        STM_FAST_UNROLL for (Index i = 0; i < rows; ++i) { sum[q][i] += left[i] * right; }
      }
    }
    STM_FAST_UNROLL for (Index q = 0; q < queries; ++q) { partial[q][part] = add_lanes<rows, width<T> / 2, T>(sum[q]); }
  }
  STM_FAST_UNROLL for (Index q = 0; q < queries; ++q) {
    const Vector<T> sum = add_lanes<parts, width<T> / rows / 2, T>(partial[q]);
    store(scores + q * product.scores_stride + row, fill(product.scale) * sum);
  }
}

template <class Stored>
STM_FAST_TARGET void scores_of_rows(const RowScores<Stored>& product) {
  using T = Accumulator<Stored>;
  constexpr Index together = group_rows / 2;
  for (Index row = 0; row < product.rows; row += width<T>) {
    Index query = 0;
    for (; query + together <= product.queries; query += together) {
      score_vector<Stored, together>(product, row, product.query + query * product.features,
                                     product.scores + query * product.scores_stride);
    }
    for (; query < product.queries; ++query) {
      score_vector<Stored, 1>(product, row, product.query + query * product.features,
                              product.scores + query * product.scores_stride);
    }
  }
}

// Two vectors of channels, for AVX2 a cache line. With few rows at a time, one run if they are streams, a strip stays
// in the L1 cache, and the following rows are prefetched early enough.
constexpr Index strip_vectors = 2;
template <bool streams>
constexpr Index strip_rows = (streams ? 1 : 2) * RowOrder::run_rows;
template <class T>
constexpr Index strip_lanes = strip_vectors * width<T>;

// What the first group of queries does besides: it reads the values in place. `copies`: contiguously to a buffer for
// the other groups. `prefetches`: as many of the next ones.
struct FirstGroup {
  bool copies;
  bool prefetches;
};

// One group of queries: the increments of the sums of a strip stay in registers.
template <class Element, class T, Update update, Index queries, FirstGroup first>
STM_FAST_INLINE void multiply_strip(const T* weights, Index weights_stride, Index rows, const Element* values,
                                    Index row_step, const Element* next, const T* rescale, T* sums, T* buffer) {
  Vector<T> sum[queries][strip_vectors] = {};
  for (Index k = 0; k < rows; ++k) {
    const Element* const from = values + k * row_step;
    Vector<T> right[strip_vectors];
    STM_FAST_UNROLL for (Index j = 0; j < strip_vectors; ++j) {
      right[j] = load_wide(from + j * width<T>);
      if constexpr (first.copies) {
        store(buffer + k * strip_lanes<T> + j * width<T>, right[j]);
      }
      if constexpr (first.prefetches) {
        if (j * width<T> * static_cast<Index>(sizeof(Element)) % cache_line == 0) {
          __builtin_prefetch(next + k * strip_lanes<T> + j * width<T>, 0, 2);
        }
      }
    }
    STM_FAST_UNROLL for (Index i = 0; i < queries; ++i) {
      const Vector<T> left = fill(weights[i * weights_stride + k]);
      STM_FAST_UNROLL for (Index j = 0; j < strip_vectors; ++j) { sum[i][j] += left * right[j]; }
    }
  }
  STM_FAST_UNROLL for (Index i = 0; i < queries; ++i) {
    STM_FAST_UNROLL for (Index j = 0; j < strip_vectors; ++j) {
      T* const at = sums + i * strip_lanes<T> + j * width<T>;
      if constexpr (update == Update::assign) {
        store(at, sum[i][j]);
      } else if constexpr (update == Update::add) {
        store(at, load(at) + sum[i][j]);
      } else {
        store(at, fill(rescale[i]) * load(at) + sum[i][j]);
      }
    }
  }
}

// The part with this number of `parts` equal ones.
STM_FAST_INLINE void prefetch_part(const Bytes& bytes, Index part, Index parts) {
  const Index lines = bytes.count / cache_line;
  for (Index line = lines * part / parts; line < lines * (part + 1) / parts; ++line) {
    __builtin_prefetch(bytes.data + line * cache_line, 0, 2);
  }
}

// Memory rows [row, row + rows). `group`: queries together, all of them if they are fewer than group_rows.
template <class Stored, Update update, Index group, bool streams>
STM_FAST_INLINE void add_strips(const StripProduct<Stored>& product, Index row, Index rows) {
  using T = Accumulator<Stored>;
  constexpr FirstGroup first = {group == group_rows, !streams};
  alignas(cache_line) T buffer[strip_rows<streams> * strip_lanes<T>];
  const Index after = product.rows + product.rows_after - row - rows, step = product.order.step;
  T* sums = product.sums;
  for (Index strip = 0; strip < product.strips; ++strip) {
    const Stored* const values = product.values + strip * product.strip_stride + product.order.offset(row);
    const Stored* next = nullptr;
    if constexpr (!streams) {
      const Index part = row / strip_rows<streams> * product.strips + strip;
      prefetch_part(product.soon, part, divide_up(product.rows, strip_rows<streams>) * product.strips);
      // in memory order: sequential prefetches are served sooner
      const Index line = strip * rows, next_row = row + rows + std::min(after, line / product.strips);
      next = product.values + next_row * step + line % product.strips * product.strip_stride;
    }
    multiply_strip<Stored, T, update, group, first>(product.weights + row, product.weights_stride, rows, values, step,
                                                    next, product.rescale, sums, buffer);
    sums += group * strip_lanes<T>;
    if constexpr (group == group_rows) {
      for (Index query = group; query < product.queries; query += group) {
        const T* const weights = product.weights + query * product.weights_stride + row;
        const T* const rescale = update == Update::rescale ? product.rescale + query : nullptr;
        multiply_strip<T, T, update, group, FirstGroup{}>(weights, product.weights_stride, rows, buffer, strip_lanes<T>,
                                                          nullptr, rescale, sums, nullptr);
        sums += group * strip_lanes<T>;
      }
    }
  }
}

template <class Stored, Index group, bool streams>
STM_FAST_INLINE void add_all_rows(const StripProduct<Stored>& product) {
  constexpr Index most = strip_rows<streams>;
  for (Index row = 0; row < product.rows; row += most) {
    const Index rows = product.rows - row < most ? product.rows - row : most;
    if (row > 0) {
      add_strips<Stored, Update::add, group, streams>(product, row, rows);
    } else if (product.rescale != nullptr) {
      add_strips<Stored, Update::rescale, group, streams>(product, row, rows);
    } else {
      add_strips<Stored, Update::assign, group, streams>(product, row, rows);
    }
  }
}

template <class Stored, Index group>
STM_FAST_TARGET void add_strips_of_group(const StripProduct<Stored>& product) {
  if (product.order.in_memory_order()) {
    add_all_rows<Stored, group, false>(product);
  } else {
    add_all_rows<Stored, group, true>(product);
  }
}

template <class Stored>
STM_FAST_TARGET void rescale_and_add_strips(const StripProduct<Stored>& product) {
  switch (product.queries) {
    case 1:
      return add_strips_of_group<Stored, 1>(product);
    case 2:
      return add_strips_of_group<Stored, 2>(product);
    case 4:
      return add_strips_of_group<Stored, 4>(product);
    default:
      return add_strips_of_group<Stored, group_rows>(product);
  }
}

template <class T>
STM_FAST_TARGET bool scale_strips(const T* sums, Index strips, Index stride, T scale, T* row) {
  Vector<T> zeros = {};  // NaN if a number was not finite
  for (Index strip = 0; strip < strips; ++strip) {
    STM_FAST_UNROLL for (Index j = 0; j < strip_vectors; ++j) {
      const Vector<T> mean = fill(scale) * load(sums + strip * stride + j * width<T>);
      store(row + strip * strip_lanes<T> + j * width<T>, mean);
      zeros += mean * fill(T(0));
    }
  }
  return across_lanes<T, false>(zeros) == T(0);
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

template <class Element>
constexpr ForwardKernels<Element> forward_table = {
    group_rows,
    lanes<Sum<Element>>,
    scaled_product<Element>,
    rescale_and_add_product<Element>,
    softmax_step<Element>,
    nullptr,
    add_product_of_rows<Element>,
};

template <class Stored>
constexpr RowKernels<Stored> row_table = {scores_of_rows<Stored>, rescale_and_add_strips<Stored>};

template <class T>
constexpr TileKernels<T> table = {
    forward_table<T>, width<T>,       strip_lanes<T>, softmax_step_of_rows<T>, row_table<T>, row_table<BFloat16>,
    scale_strips<T>,  add_product<T>, weights<T>,     softmax_backward<T>,
};

}  // namespace stm_fast::STM_FAST_ISA
