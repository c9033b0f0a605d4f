// The source of the kernels of bottleneck_kernels.h. It is included after tile_kernels_source.h, once for each
// instruction set, so it has no include guard; it uses the macros and vectors of that file.
//
// The including file may define
//   STM_FAST_LARGER(left, right), STM_FAST_SMALLER(left, right)  for vectors of floats; right if one is NaN
//   STM_FAST_NARROW(x)                                           floats to bfloat16
//   STM_FAST_ROLLED                                              if code should be small rather than fast
#include <cstring>
#include <type_traits>

#include "stm_fast/bottleneck_kernels.h"

#if defined(STM_FAST_ROLLED)
#undef STM_FAST_UNROLL
#define STM_FAST_UNROLL _Pragma("GCC unroll 1")
#endif
// compilers turn these into a comparison and a selection
#if !defined(STM_FAST_LARGER)
#define STM_FAST_LARGER(left, right) ((left) > (right) ? (left) : (right))
#define STM_FAST_SMALLER(left, right) ((left) < (right) ? (left) : (right))
#endif
#if !defined(STM_FAST_NARROW)
#define STM_FAST_NARROW(x) __builtin_convertvector(round_upper_half(x) >> 16, Halves)
#endif

namespace stm_fast::STM_FAST_ISA {

// Rows of C kept in registers for this many vectors of columns: enough sums to hide the latency of one.
template <Index count>
constexpr Index pixels_of = count == vectors ? group_rows
                            : count == 1     ? 8
                                             : std::max<Index>(6, group_rows);

// NaN stays NaN.
STM_FAST_INLINE Vector<float> relu6(Vector<float> x) {
  const Vector<float> zero = {}, limit = fill(activation_limit), positive = STM_FAST_LARGER(zero, x);
  return STM_FAST_SMALLER(limit, positive);
}

// Adds the products of `rows` pixels and `count` vectors of columns. Meanwhile it prefetches as many bytes as are read
// of A from `next`, if wanted.
template <bool prefetches, class Element, Index rows, Index count>
STM_FAST_INLINE void add_products(Vector<float> (&sum)[rows][count], const Element* const (&a)[rows],
                                  const Element* const (&b)[count], Index depth, const Element* next) {
  for (Index k = 0; k < depth; ++k) {
    if constexpr (prefetches) {
      __builtin_prefetch(next + k * rows);
    }
    decltype(load(b[0])) right[count];
    STM_FAST_UNROLL for (Index j = 0; j < count; ++j) { right[j] = load(b[j] + k * panel_lanes); }
    STM_FAST_UNROLL for (Index i = 0; i < rows; ++i) {
      const auto factor = fill(a[i][k]);
      STM_FAST_UNROLL for (Index j = 0; j < count; ++j) { sum[i][j] = multiply_add(sum[i][j], factor, right[j]); }
    }
  }
}

// `count` vectors of columns of a group of pixels: the chain after the first `done` elements of the depth. In a partial
// group, pixels after the last repeat it and are not written. The previous C is added at the end, as in the tile
// kernels.
template <class Element, bool activated, Index count, bool whole>
STM_FAST_INLINE void multiply_pixels(const PixelProduct<Element>& product, const Element* const* weights, Index first,
                                     Index column, Index done) {
  constexpr Index rows = pixels_of<count>;
  const Index left = product.pixels - first;
  float* const c = product.c + first * product.c_stride + column;
  Vector<float> sum[rows][count];
  STM_FAST_UNROLL for (Index i = 0; i < rows; ++i) {
    STM_FAST_UNROLL for (Index j = 0; j < count; ++j) {
      if constexpr (activated) {
        sum[i][j] = load(product.bias + column + j * width<float>);
      } else {
        sum[i][j] = Vector<float>{};
      }
    }
  }
  const Element* b[count];
  STM_FAST_UNROLL for (Index j = 0; j < count; ++j) { b[j] = weights[j] + done * panel_lanes; }
  const Index depth = std::min(product.chain, product.depth - done), a_stride = product.a_stride;
  for (Index part = 0; part < product.parts; ++part) {
    const Element* const start = product.a[part] + first * a_stride + done;
    const Element* a[rows];
    STM_FAST_UNROLL for (Index i = 0; i < rows; ++i) { a[i] = start + (whole || i < left ? i : left - 1) * a_stride; }
    add_products<false>(sum, a, b, depth, a[0]);
    STM_FAST_UNROLL for (Index j = 0; j < count; ++j) { b[j] += depth * panel_lanes; }
  }
  STM_FAST_UNROLL for (Index i = 0; i < rows; ++i) {
    if (whole || i < left) {
      STM_FAST_UNROLL for (Index j = 0; j < count; ++j) {
        float* const at = c + i * product.c_stride + j * width<float>;
        if constexpr (activated) {
          store(at, relu6(sum[i][j]));
        } else {
          store(at, product.add || done > 0 ? load(at) + sum[i][j] : sum[i][j]);
        }
      }
    }
  }
}

template <class Element, bool activated, Index count, bool whole>
STM_FAST_INLINE void multiply_chains(const PixelProduct<Element>& product, const Element* const* weights, Index first,
                                     Index column) {
  Index done = 0;
  do {
    multiply_pixels<Element, activated, count, whole>(product, weights, first, column, done);
    done += product.chain;
  } while (done < product.depth);
}

// `count` vectors of columns of pixels from `first` to `last`.
template <class Element, bool activated, Index count>
STM_FAST_TARGET void multiply_columns(const PixelProduct<Element>& of_row, Index first, Index last, Index column) {
  constexpr Index rows = pixels_of<count>;
  // a copy, because the compiler must assume that stores may change the original
  const PixelProduct<Element> product = of_row;
  const Element* weights[count];
  STM_FAST_UNROLL for (Index j = 0; j < count; ++j) {
    const Index at = column + j * width<float>;
    weights[j] = product.b + at / panel_lanes * product.panel_stride + at % panel_lanes;
  }
  for (; first + rows <= last; first += rows) {
    multiply_chains<Element, activated, count, true>(product, weights, first, column);
  }
  if (first < last) {
    multiply_chains<Element, activated, count, false>(product, weights, first, column);
  }
}

// Weights that fit into half of the L1 cache stay there while all columns are computed for one group of pixels after
// another. For larger weights some columns stay there while all pixels pass.
template <class Element, bool activated>
STM_FAST_TARGET void multiply_row(const PixelProduct<Element>& product) {
  static_assert(vectors == 2 || vectors == 3);
  constexpr Index few_weights = 4096, few_pixels = 24;  // whole groups of any number of rows
  const Index end = divide_up(product.columns, width<float>);
  const bool together = product.parts * product.depth * product.columns <= few_weights;
  const Index step = together ? few_pixels : product.pixels;
  for (Index first = 0; first < product.pixels; first += step) {
    const Index last = std::min(first + step, product.pixels);
    for (Index done = 0; done < end;) {
      const Index left = end - done, column = done * width<float>;
      if (vectors == 3 && (left == 3 || left > 4)) {
        multiply_columns<Element, activated, vectors>(product, first, last, column);
        done += vectors;
      } else if (left >= 2) {
        multiply_columns<Element, activated, 2>(product, first, last, column);
        done += 2;
      } else {
        multiply_columns<Element, activated, 1>(product, first, last, column);
        done += 1;
      }
    }
  }
}

typedef std::uint16_t Halves __attribute__((vector_size(STM_FAST_VECTOR_BYTES / 2), aligned(2), may_alias));

STM_FAST_INLINE Vector<float> load(const BFloat16* p) {
  const auto wide = __builtin_convertvector(*reinterpret_cast<const Halves*>(p), Vector<std::uint32_t>);
  return reinterpret_cast<Vector<float>>(wide << 16);
}
STM_FAST_INLINE void store(BFloat16* p, Vector<float> x) { *reinterpret_cast<Halves*>(p) = STM_FAST_NARROW(x); }

template <class Out, Index kernel, Index stride>
STM_FAST_TARGET void depthwise_row(const DepthwiseRow& row) {
  constexpr Index inputs = (pixel_group - 1) * stride + kernel;
  const Index pixel_stride = row.stride;
  for (Index first = 0; first < row.pixels; first += pixel_group) {
    for (Index c = 0; c < row.channels; c += width<float>) {
      Vector<float> sum[pixel_group];
      STM_FAST_UNROLL for (Index i = 0; i < pixel_group; ++i) { sum[i] = load(row.bias + c); }
      STM_FAST_UNROLL for (Index y = 0; y < kernel; ++y) {
        const float* const line = row.lines[y] + first * stride * pixel_stride + c;
        Vector<float> weight[kernel];
        STM_FAST_UNROLL for (Index x = 0; x < kernel; ++x) {
          weight[x] = load(row.weight + (y * kernel + x) * row.weight_stride + c);
        }
        STM_FAST_UNROLL for (Index x = 0; x < inputs; ++x) {
          const Vector<float> input = load(line + x * pixel_stride);
          STM_FAST_UNROLL for (Index i = 0; i < pixel_group; ++i) {
            const Index tap = x - i * stride;
            if (tap >= 0 && tap < kernel) {
              sum[i] = multiply_add(sum[i], weight[tap], input);
            }
          }
        }
      }
      Out* const out = static_cast<Out*>(row.out) + first * pixel_stride + c;
      STM_FAST_UNROLL for (Index i = 0; i < pixel_group; ++i) { store(out + i * pixel_stride, relu6(sum[i])); }
    }
  }
}

template <class Stored>
STM_FAST_TARGET void finish_row(const FinishedRow<Stored>& row) {
  const Index whole = row.channels / width<float> * width<float>;
  for (Index pixel = 0; pixel < row.pixels; ++pixel) {
    const float* const c = row.c + pixel * row.c_stride;
    const Index at = pixel * row.channels;
    for (Index i = 0; i < whole; i += width<float>) {
      Vector<float> sum = load(c + i);
      sum = row.bias == nullptr ? sum : sum + load(row.bias + i);
      sum = row.residual == nullptr ? sum : sum + load(row.residual + at + i);
      store(row.y + at + i, sum);
    }
    for (Index i = whole; i < row.channels; ++i) {
      const float sum = c[i] + (row.bias == nullptr ? 0.0f : row.bias[i]);
      row.y[at + i] = narrow<Stored>(row.residual == nullptr ? sum : sum + widen(row.residual[at + i]));
    }
  }
}

STM_FAST_TARGET inline void widen_row(const BFloat16* from, Index count, float* to) {
  const Index whole = count / width<float> * width<float>;
  for (Index i = 0; i < whole; i += width<float>) {
    store(to + i, load(from + i));
  }
  for (Index i = whole; i < count; ++i) {
    to[i] = widen(from[i]);
  }
}

STM_FAST_TARGET inline void widen_pairs(const BFloat16Pair* from, Index count, float* to) {
  for (Index i = 0; i < count; i += panel_lanes) {
    STM_FAST_UNROLL for (Index lane = 0; lane < panel_lanes; lane += width<float>) {
      const Vector<std::uint32_t> pairs = load(from + i + lane);
      store(to + 2 * i + lane, reinterpret_cast<Vector<float>>(pairs << 16));
      store(to + 2 * i + panel_lanes + lane, reinterpret_cast<Vector<float>>(pairs & 0xffff0000u));
    }
  }
}

// The output of the depthwise convolution, as input of the products.
template <class Element>
using Between = std::conditional_t<std::is_same_v<Element, float>, float, BFloat16>;

template <class Element>
constexpr PixelKernels<Element> pixel_table = {
    multiply_row<Element, true>,
    multiply_row<Element, false>,
    {{depthwise_row<Between<Element>, 3, 1>, depthwise_row<Between<Element>, 3, 2>},
     {depthwise_row<Between<Element>, 5, 1>, depthwise_row<Between<Element>, 5, 2>}},
};

constexpr BottleneckKernels bottleneck_table = {
    pixel_table<float>, finish_row<float>, finish_row<BFloat16>, widen_row, widen_pairs,
};

}  // namespace stm_fast::STM_FAST_ISA
