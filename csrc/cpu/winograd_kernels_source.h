// The source of the kernels of winograd_kernels.h. It is included after bottleneck_kernels_source.h, once for each
// instruction set, so it has no include guard; it uses the macros and functions of that file.
#include <array>
#include <iterator>

#include "stm_fast/winograd.h"
#include "stm_fast/winograd_kernels.h"

namespace stm_fast::STM_FAST_ISA {

// The coefficients, from the lowest, of the product of (y - a^2) over the pairs of a tile but for one, or over all of
// them if there is no such pair.
template <Index tile, Index without>
constexpr auto coefficients() {
  constexpr auto pairs = winograd_pairs<tile>;
  constexpr Index count = std::ssize(pairs), degree = without < count ? count - 1 : count;
  std::array<double, degree + 1> exact = {1.0};
  Index done = 0;
  for (Index i = 0; i < count; ++i) {
    if (i != without) {
      ++done;
      for (Index k = done; k >= 0; --k) {
        exact[k] = (k > 0 ? exact[k - 1] : 0.0) - pairs[i] * pairs[i] * (k < done ? exact[k] : 0.0);
      }
    }
  }
  std::array<float, degree + 1> rounded = {};
  for (Index k = 0; k <= degree; ++k) {
    rounded[k] = static_cast<float>(exact[k]);
  }
  return rounded;
}

// The sum of every second vector from `d` on, times the coefficients.
template <class Coefficients>
STM_FAST_INLINE Vector<float> every_second(const Coefficients& of, const Vector<float>* d, Index stride) {
  Vector<float> sum = of[0] * d[0];
  STM_FAST_UNROLL for (Index k = 1; k < std::ssize(of); ++k) { sum += of[k] * d[2 * k * stride]; }
  return sum;
}

template <Index tile, Index pair>
STM_FAST_INLINE void transform_inputs_of_pairs(const Vector<float>* d, Vector<float>* out, Index stride) {
  constexpr auto pairs = winograd_pairs<tile>;
  if constexpr (pair < std::ssize(pairs)) {
    constexpr auto of = coefficients<tile, pair>();
    const Vector<float> even = every_second(of, d + 2, 1);
    const Vector<float> odd = static_cast<float>(pairs[pair]) * every_second(of, d + 1, 1);
    out[(1 + 2 * pair) * stride] = even + odd;
    out[(2 + 2 * pair) * stride] = even - odd;
    transform_inputs_of_pairs<tile, pair + 1>(d, out, stride);
  }
}

// B^T d of the paper's section 4.3 for the points of winograd.h; tile + 2 vectors `stride` apart, in place.
template <Index tile>
STM_FAST_INLINE void transform_inputs(Vector<float>* at, Index stride) {
  constexpr auto all = coefficients<tile, tile>();
  Vector<float> d[tile + 2];
  STM_FAST_UNROLL for (Index i = 0; i < tile + 2; ++i) { d[i] = at[i * stride]; }
  at[0] = every_second(all, d, 1);
  transform_inputs_of_pairs<tile, 0>(d, at, stride);
  at[(tile + 1) * stride] = every_second(all, d + 1, 1);
}

// A^T m: tile + 2 vectors become `tile`, in place.
template <Index tile>
STM_FAST_INLINE void transform_sums(Vector<float>* at, Index stride) {
  constexpr auto pairs = winograd_pairs<tile>;
  constexpr Index count = std::ssize(pairs);
  Vector<float> term[count][2];  // even and odd, times the power of the point
  const Vector<float> at_zero = at[0], at_infinity = at[(tile + 1) * stride];
  STM_FAST_UNROLL for (Index i = 0; i < count; ++i) {
    const Vector<float> plus = at[(1 + 2 * i) * stride], minus = at[(2 + 2 * i) * stride];
    term[i][0] = plus + minus;
    term[i][1] = static_cast<float>(pairs[i]) * (plus - minus);
  }
  STM_FAST_UNROLL for (Index k = 0; k < tile; ++k) {
    Vector<float> sum = k == 0 ? at_zero : k == tile - 1 ? at_infinity : Vector<float>{};
    STM_FAST_UNROLL for (Index i = 0; i < count; ++i) {
      sum += term[i][k % 2];
      term[i][k % 2] *= static_cast<float>(pairs[i] * pairs[i]);
    }
    at[k * stride] = sum;
  }
}

template <class Stored>
STM_FAST_INLINE Vector<float> load_some(const Stored* from, Index count) {
  Stored numbers[width<float>] = {};
  for (Index i = 0; i < count; ++i) {
    numbers[i] = from[i];
  }
  const Stored* const start = numbers;
  return load(start);
}

template <class Stored>
STM_FAST_INLINE void store_some(Stored* to, Vector<float> x, Index count) {
  Stored numbers[width<float>];
  Stored* const start = numbers;
  store(start, x);
  for (Index i = 0; i < count; ++i) {
    to[i] = numbers[i];
  }
}

// The place of a tile's inputs: columns [begin, end) of rows that are not null are inside the image.
template <class Stored, Index tile>
struct TileInputs {
  STM_FAST_INLINE TileInputs(const Image<const Stored>& image, Index number) {
    const Index across = divide_up(image.width, tile);
    const Index top = number / across * tile - 1;
    left = number % across * tile - 1;
    begin = std::max<Index>(0, -left);
    end = std::min(tile + 2, image.width - left);
    inside = begin == 0 && end == tile + 2;
    for (Index i = 0; i < tile + 2; ++i) {
      const bool valid = top + i >= 0 && top + i < image.height;
      lines[i] = valid ? image.row(top + i) : nullptr;
      inside = inside && valid;
    }
  }

  const Stored* lines[tile + 2];
  Index left;  // column of the first input
  Index begin, end;
  bool inside;
};

// Channels [c, c + count) of a tile. `inside` the image; `whole`: count is that of a vector.
template <Index tile, bool relu, bool inside, bool whole, class Stored, class Point>
STM_FAST_INLINE void transform_input_vector(const TransformedInput<Stored, Point>& input,
                                            const TileInputs<Stored, tile>& place, Index c, Index count, Point* to) {
  constexpr Index side = tile + 2;
  constexpr Index line = cache_line / static_cast<Index>(sizeof(Stored));
  const Index channels = input.image.channels, point_stride = input.tiles.point_stride;
  if (inside && c % line == 0) {
    // columns that the next tile will add; not into the L1 cache, of which the pixels of a tile may share a few sets
    STM_FAST_UNROLL for (Index i = 0; i < side; ++i) {
      STM_FAST_UNROLL for (Index j = 0; j < tile; ++j) {
        __builtin_prefetch(place.lines[i] + (place.left + side + j) * channels + c, 0, 2);
      }
    }
  }
  Vector<float> d[side * side];
  STM_FAST_UNROLL for (Index j = 0; j < side; ++j) {
    STM_FAST_UNROLL for (Index i = 0; i < side; ++i) {
      Vector<float>& value = d[i * side + j];
      value = Vector<float>{};
      if (inside || (place.lines[i] != nullptr && j >= place.begin && j < place.end)) {
        const Stored* const from = place.lines[i] + (place.left + j) * channels + c;
        value = whole ? load(from) : load_some(from, count);
      }
      if constexpr (relu) {
        value = STM_FAST_LARGER(Vector<float>{}, value);
      }
    }
    transform_inputs<tile>(d + j, side);
  }
  STM_FAST_UNROLL for (Index i = 0; i < side; ++i) {
    transform_inputs<tile>(d + i * side, 1);
    STM_FAST_UNROLL for (Index j = 0; j < side; ++j) { store(to + (i * side + j) * point_stride + c, d[i * side + j]); }
  }
}

template <Index tile, bool relu, class Stored, class Point>
STM_FAST_TARGET void transform_input_tiles(const TransformedInput<Stored, Point>& of_tiles) {
  // a copy, because the compiler must assume that stores may change the original
  const TransformedInput<Stored, Point> input = of_tiles;
  const Index channels = input.image.channels, whole = channels / width<float> * width<float>;
  for (Index index = 0; index < input.tiles.count; ++index) {
    const TileInputs<Stored, tile> place(input.image, input.tiles.first + index);
    Point* const to = input.points + index * input.tiles.tile_stride;
    for (Index c = 0; c < whole; c += width<float>) {
      if (place.inside) {
        transform_input_vector<tile, relu, true, true>(input, place, c, width<float>, to);
      } else {
        transform_input_vector<tile, relu, false, true>(input, place, c, width<float>, to);
      }
    }
    if (whole < channels) {
      transform_input_vector<tile, relu, false, false>(input, place, whole, channels - whole, to);
    }
  }
}

template <Index tile, class Stored, class Point>
STM_FAST_TARGET void transform_input(const TransformedInput<Stored, Point>& input) {
  if (input.relu) {
    transform_input_tiles<tile, true>(input);
  } else {
    transform_input_tiles<tile, false>(input);
  }
}

// Channels [c, c + count) after the first of a tile whose outputs start at `at`.
template <Index tile, bool whole, class Stored>
STM_FAST_INLINE void transform_output_vector(const TransformedOutput<Stored>& output, const float* sums, Index top,
                                             Index left, Index c, Index count) {
  const Image<Stored>& image = output.image;
  const Index high = std::min(tile, image.height - top), wide = std::min(tile, image.width - left);
  constexpr Index side = tile + 2;
  Vector<float> m[side * side];
  STM_FAST_UNROLL for (Index j = 0; j < side; ++j) {
    STM_FAST_UNROLL for (Index i = 0; i < side; ++i) {
      m[i * side + j] = load(sums + (i * side + j) * output.tiles.point_stride + c);
    }
    transform_sums<tile>(m + j, side);
  }
  const Vector<float> bias = load(output.bias + c);
  for (Index i = 0; i < high; ++i) {
    transform_sums<tile>(m + i * side, 1);
    Stored* const line = image.row(top + i);
    const Index at = left * image.channels + output.first_channel + c;
    const Stored* const added = output.residual == nullptr ? nullptr : output.residual + (line - image.data) + at;
    for (Index j = 0; j < wide; ++j) {
      Vector<float> value = m[i * side + j] + bias;
      const Index pixel = j * image.channels;
      if (added != nullptr) {
        value += whole ? load(added + pixel) : load_some(added + pixel, count);
      }
      if (output.relu) {
        value = STM_FAST_LARGER(Vector<float>{}, value);
      }
      if constexpr (whole) {
        store(line + at + pixel, value);
      } else {
        store_some(line + at + pixel, value, count);
      }
    }
  }
}

template <Index tile, class Stored>
STM_FAST_TARGET void transform_output(const TransformedOutput<Stored>& of_tiles) {
  // a copy, because the compiler must assume that stores may change the original
  const TransformedOutput<Stored> output = of_tiles;
  const Index across = divide_up(output.image.width, tile);
  const Index whole = output.channels / width<float> * width<float>;
  for (Index index = 0; index < output.tiles.count; ++index) {
    const Index number = output.tiles.first + index;
    const Index top = number / across * tile, left = number % across * tile;
    const float* const sums = output.sums + index * output.tiles.tile_stride;
    for (Index c = 0; c < whole; c += width<float>) {
      transform_output_vector<tile, true>(output, sums, top, left, c, width<float>);
    }
    if (whole < output.channels) {
      transform_output_vector<tile, false>(output, sums, top, left, whole, output.channels - whole);
    }
  }
}

template <Index tile, class Stored, class Point>
constexpr WinogradKernels<Stored, Point> winograd_table = {transform_input<tile, Stored, Point>,
                                                           transform_output<tile, Stored>};

constexpr AllWinogradKernels all_winograd_tables = {winograd_table<small_tile, float, float>,
                                                    winograd_table<large_tile, float, float>,
                                                    winograd_table<small_tile, BFloat16, float>};

}  // namespace stm_fast::STM_FAST_ISA
