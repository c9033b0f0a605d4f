// The source of the kernels of convolution_kernels.h. It is included after bottleneck_kernels_source.h, once for each
// instruction set, so it has no include guard; it uses the macros and vectors of that file.
#include "stm_fast/convolution_kernels.h"

namespace stm_fast::STM_FAST_ISA {

// The widest tile: four vectors of columns fill 32 registers with six pixels, two fill 16.
constexpr Index most_columns = group_rows == 8 ? 4 : 2;

// Pixels of a tile with this many vectors of columns.
template <Index count>
constexpr Index tile_pixels = count == most_columns ? 6 : 8;

// Of one pixel, if its last vector has fewer than all lanes.
template <class Stored>
STM_FAST_TARGET inline void finish_columns(Stored* y, const float* sums, Index columns, bool add, float least) {
  for (Index i = 0; i < columns; ++i) {
    const float sum = add ? sums[i] + widen(y[i]) : sums[i];
    y[i] = narrow<Stored>(sum < least ? least : sum);
  }
}

template <class Stored, Index rows, Index count>
STM_FAST_INLINE void finish_tile(Stored* y, const Vector<float> (&sum)[rows][count], Index pixels, Index columns,
                                 Index stride, bool add, float least) {
  if (columns < count * width<float>) {
    float sums[count * width<float>];
    STM_FAST_UNROLL for (Index i = 0; i < rows; ++i) {
      STM_FAST_UNROLL for (Index j = 0; j < count; ++j) { store(sums + j * width<float>, sum[i][j]); }
      if (i < pixels) {
        finish_columns(y + i * stride, sums, columns, add, least);
      }
    }
    return;
  }
  const Vector<float> smallest = fill(least);
  STM_FAST_UNROLL for (Index i = 0; i < rows; ++i) {
    if (i < pixels) {
      Stored* const to = y + i * stride;
      Vector<float> total[count];
      STM_FAST_UNROLL for (Index j = 0; j < count; ++j) { total[j] = sum[i][j]; }
      if (add) {
        STM_FAST_UNROLL for (Index j = 0; j < count; ++j) {
          total[j] += load(static_cast<const Stored*>(to + j * width<float>));
        }
      }
      STM_FAST_UNROLL for (Index j = 0; j < count; ++j) {
        store(to + j * width<float>, STM_FAST_LARGER(smallest, total[j]));
      }
    }
  }
}

// Products in one sum, before it is added to the previous ones: rounding errors of a longer sum would be larger.
constexpr Index most_summed = 128;

// In a partial tile, pixels after the last repeat it and are not written.
template <class Element, class Stored, Index count, bool ahead, bool whole>
STM_FAST_INLINE void convolve_tile(const ConvolvedPixels<Element, Stored>& pixels, const Element* const* weights,
                                   Index first, Index column) {
  constexpr Index rows = tile_pixels<count>;
  const Index left = pixels.pixels - first, a_stride = pixels.a_stride, columns = pixels.columns;
  Stored* const y = pixels.y + first * columns + column;
  STM_FAST_UNROLL for (Index i = 0; i < rows; ++i) {
    STM_FAST_UNROLL for (Index j = 0; j < count; ++j) { __builtin_prefetch(y + i * columns + j * width<float>, 1); }
  }
  Vector<float> total[rows][count];
  STM_FAST_UNROLL for (Index i = 0; i < rows; ++i) {
    STM_FAST_UNROLL for (Index j = 0; j < count; ++j) { total[i][j] = load(pixels.bias + column + j * width<float>); }
  }
  const Element* b[count];
  STM_FAST_UNROLL for (Index j = 0; j < count; ++j) { b[j] = weights[j]; }
  Vector<float> sum[rows][count] = {};
  Index summed = 0;
  for (Index part = 0; part < pixels.parts; ++part) {
    const Element* const start = pixels.a[part] + first * a_stride;
    for (Index k = 0; k < pixels.depth; k += most_summed) {
      const Index depth = std::min(most_summed, pixels.depth - k);
      if (summed + depth > most_summed) {
        STM_FAST_UNROLL for (Index i = 0; i < rows; ++i) {
          STM_FAST_UNROLL for (Index j = 0; j < count; ++j) {
            total[i][j] += sum[i][j];
            sum[i][j] = Vector<float>{};
          }
        }
        summed = 0;
      }
      const Element* a[rows];
      STM_FAST_UNROLL for (Index i = 0; i < rows; ++i) {
        a[i] = start + (whole || i < left ? i : left - 1) * a_stride + k;
      }
      add_products<ahead>(sum, a, b, depth, start + rows * (a_stride + k));
      STM_FAST_UNROLL for (Index j = 0; j < count; ++j) { b[j] += depth * panel_lanes; }
      summed += depth;
    }
  }
  STM_FAST_UNROLL for (Index i = 0; i < rows; ++i) {
    STM_FAST_UNROLL for (Index j = 0; j < count; ++j) { total[i][j] += sum[i][j]; }
  }
  finish_tile<Stored, rows, count>(y, total, whole ? rows : left, columns - column, columns, pixels.add, pixels.least);
}

// `count` vectors of columns of all pixels.
template <class Element, class Stored, Index count, bool ahead>
STM_FAST_TARGET void convolve_columns(const ConvolvedPixels<Element, Stored>& all, Index column) {
  constexpr Index rows = tile_pixels<count>;
  // a copy, because the compiler must assume that stores may change the original
  const ConvolvedPixels<Element, Stored> pixels = all;
  const Element* weights[count];
  STM_FAST_UNROLL for (Index j = 0; j < count; ++j) {
    const Index at = column + j * width<float>;
    weights[j] = pixels.b + at / panel_lanes * pixels.parts * pixels.depth * panel_lanes + at % panel_lanes;
  }
  Index first = 0;
  for (; first + rows <= pixels.pixels; first += rows) {
    convolve_tile<Element, Stored, count, ahead, true>(pixels, weights, first, column);
  }
  if (first < pixels.pixels) {
    convolve_tile<Element, Stored, count, false, false>(pixels, weights, first, column);
  }
}

template <class Element, class Stored, Index count>
STM_FAST_TARGET void convolve_next(const ConvolvedPixels<Element, Stored>& pixels, Index& done) {
  const Index column = done * width<float>;
  if (done == 0) {
    convolve_columns<Element, Stored, count, true>(pixels, column);
  } else {
    convolve_columns<Element, Stored, count, false>(pixels, column);
  }
  done += count;
}

template <class Element, class Stored>
STM_FAST_TARGET void convolve(const ConvolvedPixels<Element, Stored>& pixels) {
  const Index end = divide_up(pixels.columns, width<float>);
  for (Index done = 0; done < end;) {
    const Index left = end - done;
    if (left >= most_columns && left != most_columns + 1) {
      convolve_next<Element, Stored, most_columns>(pixels, done);
    } else if (most_columns == 4 && left >= 3) {
      convolve_next<Element, Stored, 3>(pixels, done);
    } else if (left >= 2) {
      convolve_next<Element, Stored, 2>(pixels, done);
    } else {
      convolve_next<Element, Stored, 1>(pixels, done);
    }
  }
}

STM_FAST_INLINE Vector<float> larger_or_nan(Vector<float> left, Vector<float> right) {
  return left != left ? left : STM_FAST_LARGER(left, right);
}

template <class Stored>
STM_FAST_TARGET void pool(const PooledRow<Stored>& pooled) {
  const PooledRow<Stored> row = pooled;
  const Index channels = row.channels, whole = channels / width<float> * width<float>;
  for (Index x = 0; x < row.width; x += 2) {
    const Index first = x == 0 ? 0 : x - 1, last = x + 1 < row.width ? x + 1 : x;
    Stored* const y = row.y + x / 2 * channels;
    for (Index c = 0; c < whole; c += width<float>) {
      Vector<float> largest = fill(-INFINITY);
      STM_FAST_UNROLL for (Index i = 0; i < 3; ++i) {
        for (Index at = first; at <= last; ++at) {
          largest = larger_or_nan(largest, load(static_cast<const Stored*>(row.lines[i] + at * channels + c)));
        }
      }
      store(y + c, largest);
    }
    for (Index c = whole; c < channels; ++c) {
      float largest = -INFINITY;
      for (Index i = 0; i < 3; ++i) {
        for (Index at = first; at <= last; ++at) {
          const float value = widen(row.lines[i][at * channels + c]);
          largest = largest >= value || largest != largest ? largest : value;
        }
      }
      y[c] = narrow<Stored>(largest);
    }
  }
}

template <class Element, class Stored>
constexpr ConvolutionKernels<Element, Stored> convolution_table = {convolve<Element, Stored>, pool<Stored>};

}  // namespace stm_fast::STM_FAST_ISA
