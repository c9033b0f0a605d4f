// The source of the kernels of winograd_kernels.h. It is included after bottleneck_kernels_source.h, once for each
// instruction set, so it has no include guard; it uses the macros and functions of that file.
#include "stm_fast/winograd.h"
#include "stm_fast/winograd_kernels.h"

namespace stm_fast::STM_FAST_ISA {

constexpr auto small_point = static_cast<float>(winograd_point);
constexpr auto large_point = static_cast<float>(1 / winograd_point);
constexpr auto small_square = static_cast<float>(winograd_point * winograd_point);
constexpr auto large_square = static_cast<float>(1 / (winograd_point * winograd_point));
constexpr auto sum_of_squares =
    static_cast<float>(winograd_point * winograd_point + 1 / (winograd_point * winograd_point));
constexpr auto small_cube = static_cast<float>(winograd_point * winograd_point * winograd_point);
constexpr auto large_cube = static_cast<float>(1 / (winograd_point * winograd_point * winograd_point));

// B^T d of the paper's section 4.3 for the points of winograd.h; six vectors `stride` apart, in place.
STM_FAST_INLINE void transform_inputs(Vector<float>* d, Index stride) {
  const Vector<float> d0 = d[0], d1 = d[stride], d2 = d[2 * stride];
  const Vector<float> d3 = d[3 * stride], d4 = d[4 * stride], d5 = d[5 * stride];
  const Vector<float> small_even = d4 - large_square * d2, small_odd = small_point * d3 - large_point * d1;
  const Vector<float> large_even = d4 - small_square * d2, large_odd = large_point * d3 - small_point * d1;
  d[0] = d0 + d4 - sum_of_squares * d2;
  d[stride] = small_even + small_odd;
  d[2 * stride] = small_even - small_odd;
  d[3 * stride] = large_even + large_odd;
  d[4 * stride] = large_even - large_odd;
  d[5 * stride] = d1 + d5 - sum_of_squares * d3;
}

// A^T m: six vectors become four, in place.
STM_FAST_INLINE void transform_sums(Vector<float>* m, Index stride) {
  const Vector<float> m1 = m[stride], m2 = m[2 * stride], m3 = m[3 * stride], m4 = m[4 * stride];
  const Vector<float> small_even = m1 + m2, small_odd = m1 - m2, large_even = m3 + m4, large_odd = m3 - m4;
  m[0] = m[0] + small_even + large_even;
  m[stride] = small_point * small_odd + large_point * large_odd;
  m[2 * stride] = small_square * small_even + large_square * large_even;
  m[3 * stride] = small_cube * small_odd + large_cube * large_odd + m[5 * stride];
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
template <class Stored>
struct TileInputs {
  STM_FAST_INLINE TileInputs(const Image<const Stored>& image, Index tile) {
    const Index across = divide_up(image.width, winograd_tile);
    const Index top = tile / across * winograd_tile - 1;
    left = tile % across * winograd_tile - 1;
    begin = std::max<Index>(0, -left);
    end = std::min(winograd_side, image.width - left);
    inside = begin == 0 && end == winograd_side;
    for (Index i = 0; i < winograd_side; ++i) {
      const bool valid = top + i >= 0 && top + i < image.height;
      lines[i] = valid ? image.row(top + i) : nullptr;
      inside = inside && valid;
    }
  }

  const Stored* lines[winograd_side];
  Index left;  // column of the first input
  Index begin, end;
  bool inside;
};

// Channels [c, c + count) of a tile. `inside` the image; `whole`: count is that of a vector.
template <class Stored, class Point, bool relu, bool inside, bool whole>
STM_FAST_INLINE void transform_input_vector(const TransformedInput<Stored, Point>& input,
                                            const TileInputs<Stored>& place, Index c, Index count, Point* to) {
  constexpr Index line = cache_line / static_cast<Index>(sizeof(Stored));
  const Index channels = input.image.channels, point_stride = input.tiles.point_stride;
  if (inside && c % line == 0) {
    // columns that the next tile will add; not into the L1 cache, of which the pixels of a tile may share a few sets
    STM_FAST_UNROLL for (Index i = 0; i < winograd_side; ++i) {
      STM_FAST_UNROLL for (Index j = 0; j < winograd_tile; ++j) {
        __builtin_prefetch(place.lines[i] + (place.left + winograd_side + j) * channels + c, 0, 2);
      }
    }
  }
  Vector<float> d[winograd_points];
  STM_FAST_UNROLL for (Index j = 0; j < winograd_side; ++j) {
    STM_FAST_UNROLL for (Index i = 0; i < winograd_side; ++i) {
      Vector<float>& value = d[i * winograd_side + j];
      value = Vector<float>{};
      if (inside || (place.lines[i] != nullptr && j >= place.begin && j < place.end)) {
        const Stored* const from = place.lines[i] + (place.left + j) * channels + c;
        value = whole ? load(from) : load_some(from, count);
      }
      if constexpr (relu) {
        value = STM_FAST_LARGER(Vector<float>{}, value);
      }
    }
    transform_inputs(d + j, winograd_side);
  }
  STM_FAST_UNROLL for (Index i = 0; i < winograd_side; ++i) {
    transform_inputs(d + i * winograd_side, 1);
    STM_FAST_UNROLL for (Index j = 0; j < winograd_side; ++j) {
      store(to + (i * winograd_side + j) * point_stride + c, d[i * winograd_side + j]);
    }
  }
}

template <class Stored, class Point, bool relu>
STM_FAST_TARGET void transform_input_tiles(const TransformedInput<Stored, Point>& of_tiles) {
  // a copy, because the compiler must assume that stores may change the original
  const TransformedInput<Stored, Point> input = of_tiles;
  const Index channels = input.image.channels, whole = channels / width<float> * width<float>;
  for (Index tile = 0; tile < input.tiles.count; ++tile) {
    const TileInputs<Stored> place(input.image, input.tiles.first + tile);
    Point* const to = input.points + tile * input.tiles.tile_stride;
    for (Index c = 0; c < whole; c += width<float>) {
      if (place.inside) {
        transform_input_vector<Stored, Point, relu, true, true>(input, place, c, width<float>, to);
      } else {
        transform_input_vector<Stored, Point, relu, false, true>(input, place, c, width<float>, to);
      }
    }
    if (whole < channels) {
      transform_input_vector<Stored, Point, relu, false, false>(input, place, whole, channels - whole, to);
    }
  }
}

template <class Stored, class Point>
STM_FAST_TARGET void transform_input(const TransformedInput<Stored, Point>& input) {
  if (input.relu) {
    transform_input_tiles<Stored, Point, true>(input);
  } else {
    transform_input_tiles<Stored, Point, false>(input);
  }
}

// Channels [c, c + count) after the first of a tile whose outputs start at `at`.
template <class Stored, bool whole>
STM_FAST_INLINE void transform_output_vector(const TransformedOutput<Stored>& output, const float* sums, Index top,
                                             Index left, Index c, Index count) {
  const Image<Stored>& image = output.image;
  const Index high = std::min(winograd_tile, image.height - top), wide = std::min(winograd_tile, image.width - left);
  Vector<float> m[winograd_points];
  STM_FAST_UNROLL for (Index j = 0; j < winograd_side; ++j) {
    STM_FAST_UNROLL for (Index i = 0; i < winograd_side; ++i) {
      m[i * winograd_side + j] = load(sums + (i * winograd_side + j) * output.tiles.point_stride + c);
    }
    transform_sums(m + j, winograd_side);
  }
  const Vector<float> bias = load(output.bias + c);
  for (Index i = 0; i < high; ++i) {
    transform_sums(m + i * winograd_side, 1);
    Stored* const line = image.row(top + i);
    const Index at = left * image.channels + output.first_channel + c;
    const Stored* const added = output.residual == nullptr ? nullptr : output.residual + (line - image.data) + at;
    for (Index j = 0; j < wide; ++j) {
      Vector<float> value = m[i * winograd_side + j] + bias;
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

template <class Stored>
STM_FAST_TARGET void transform_output(const TransformedOutput<Stored>& of_tiles) {
  // a copy, because the compiler must assume that stores may change the original
  const TransformedOutput<Stored> output = of_tiles;
  const Index across = divide_up(output.image.width, winograd_tile);
  const Index whole = output.channels / width<float> * width<float>;
  for (Index index = 0; index < output.tiles.count; ++index) {
    const Index tile = output.tiles.first + index;
    const Index top = tile / across * winograd_tile, left = tile % across * winograd_tile;
    const float* const sums = output.sums + index * output.tiles.tile_stride;
    for (Index c = 0; c < whole; c += width<float>) {
      transform_output_vector<Stored, true>(output, sums, top, left, c, width<float>);
    }
    if (whole < output.channels) {
      transform_output_vector<Stored, false>(output, sums, top, left, whole, output.channels - whole);
    }
  }
}

template <class Stored, class Point>
constexpr WinogradKernels<Stored, Point> winograd_table = {transform_input<Stored, Point>, transform_output<Stored>};

constexpr AllWinogradKernels all_winograd_tables = {winograd_table<float, float>, winograd_table<BFloat16, float>};

}  // namespace stm_fast::STM_FAST_ISA
