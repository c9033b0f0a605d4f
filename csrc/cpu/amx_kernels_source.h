// The products of the forward reads by AMX tiles, after tile_kernels_source.h and quantized_kernels_source.h, which
// supply the rest. It is included once for the instructions and once for their emulation, so it has no include guard.
//
// A tile has 16 rows of 64 bytes. A tile of A holds 16 rows of C by 16 elements of the depth, one of B 16 elements by
// 16 lanes, and a tile of C, in float or 32-bit integers, 16 rows by 16 lanes. Two tiles of each of A and B give four
// of C: all eight registers.
//
// The including file also defines
//   STM_FAST_TILE_CONFIGURE(config), STM_FAST_TILE_RELEASE()
//   STM_FAST_TILE_ZERO(tile), STM_FAST_TILE_LOAD(tile, from, stride), STM_FAST_TILE_STORE(tile, to, stride in bytes)
//   STM_FAST_TILE_DOT_PAIRS(sum, left, right)  products of pairs of bfloat16 numbers
//   STM_FAST_TILE_DOT_QUADS(sum, left, right)  products of quads of bytes: those of left with a sign, of right without
// whose tiles are literal numbers, as the instructions require.
#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "kernel_sets.h"

// a macro, because the numbers of tiles must be literals
#define STM_FAST_TILE_DOT(Element, sum, left, right)   \
  do {                                                 \
    if constexpr (std::is_same_v<Element, ByteQuad>) { \
      STM_FAST_TILE_DOT_QUADS(sum, left, right);       \
    } else {                                           \
      STM_FAST_TILE_DOT_PAIRS(sum, left, right);       \
    }                                                  \
  } while (false)

namespace stm_fast::STM_FAST_ISA {

constexpr Index tile = 16;  // rows, elements of the depth, lanes
constexpr Index tile_elements = tile * tile;
static_assert(group_rows == tile && lanes<float> == 2 * tile);

struct alignas(cache_line) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {tile, tile, tile, tile, tile, tile, tile, tile};
};
static_assert(sizeof(TileConfig) == 64);

using Elements = Vector<std::uint32_t>;

// The lanes of a pair of rows that make up its first row, or its second.
template <int step, int... lane>
STM_FAST_INLINE Elements first_of_pair(Elements upper, Elements lower, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(upper, lower, ((lane & step) != 0 ? int{tile} + lane - step : lane)...);
}
template <int step, int... lane>
STM_FAST_INLINE Elements second_of_pair(Elements upper, Elements lower, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(upper, lower, ((lane & step) != 0 ? int{tile} + lane : lane + step)...);
}

// Exchanges the off-diagonal squares of `step` x `step` elements.
template <int step>
STM_FAST_INLINE void transpose_step(Elements* rows) {
  constexpr auto all_lanes = std::make_integer_sequence<int, tile>();
  STM_FAST_UNROLL for (Index i = 0; i < tile; ++i) {
    if ((i & step) == 0) {
      const Elements upper = rows[i], lower = rows[i + step];
      rows[i] = first_of_pair<step>(upper, lower, all_lanes);
      rows[i + step] = second_of_pair<step>(upper, lower, all_lanes);
    }
  }
}

// to = the transpose of 16 x 16 elements; in place if they are the same.
template <class Element>
STM_FAST_INLINE void transpose(const Element* from, Element* to) {
  Elements rows[tile];
  STM_FAST_UNROLL for (Index i = 0; i < tile; ++i) { rows[i] = load(from + i * tile); }
  transpose_step<1>(rows);
  transpose_step<2>(rows);
  transpose_step<4>(rows);
  transpose_step<8>(rows);
  STM_FAST_UNROLL for (Index i = 0; i < tile; ++i) { store(&to[i * tile].bits, rows[i]); }
}

// From [groups][depth][16 rows] to [groups][depth / 16][16 rows][16], but for the last depth % 16 of each group.
template <class Element>
STM_FAST_TARGET void arrange(Element* a, Index groups, Index depth) {
  for (Index group = 0; group < groups; ++group, a += depth * tile) {
    for (Index k = 0; k + tile <= depth; k += tile) {
      transpose(a + k * tile, a + k * tile);
    }
  }
}

// A and B with the depth of one tile: the last depth % 16 elements and zeros.
template <class Element>
struct LastTiles {
  Element a[2][tile_elements];
  Element b[tile * 2 * tile];
};

// Adds the products of one tile depth to the first, or both, groups of rows of C.
template <class Element>
STM_FAST_INLINE void add_tiles(const Element* a, Index next_group, const Element* b, Index b_stride, bool both) {
  constexpr Index bytes = sizeof(Element);
  STM_FAST_TILE_LOAD(6, b, b_stride * bytes);
  STM_FAST_TILE_LOAD(7, b + tile, b_stride * bytes);
  STM_FAST_TILE_LOAD(4, a, tile * bytes);
  STM_FAST_TILE_DOT(Element, 0, 4, 6);
  STM_FAST_TILE_DOT(Element, 1, 4, 7);
  if (both) {
    STM_FAST_TILE_LOAD(5, a + next_group, tile * bytes);
    STM_FAST_TILE_DOT(Element, 2, 5, 6);
    STM_FAST_TILE_DOT(Element, 3, 5, 7);
  }
}

// A B, one or two groups of rows at a time: calls finish(row, rows, lane, sums, stride) for each 16 lanes of them.
template <class Element, class Finish>
STM_FAST_INLINE void multiply_tiles(const Product<Element>& product, const Finish& finish) {
  constexpr Index width = 2 * tile;
  static constexpr TileConfig config;
  STM_FAST_TILE_CONFIGURE(&config);
  const Index rest = product.depth % tile, whole = product.depth - rest, next_group = product.depth * tile;
  LastTiles<Element> last;
  if (rest > 0) {
    std::fill_n(&last.b[0], tile * width, Element{});
    for (Index k = 0; k < rest; ++k) {
      std::copy_n(product.b + (whole + k) * product.b_stride, width, last.b + k * width);
    }
  }
  alignas(cache_line) Register<Element> sums[2 * tile * width];
  for (Index row = 0; row < product.rows; row += 2 * tile) {
    const bool both = row + tile < product.rows;
    const Element* const a = product.a + row * product.depth;
    STM_FAST_TILE_ZERO(0);
    STM_FAST_TILE_ZERO(1);
    STM_FAST_TILE_ZERO(2);
    STM_FAST_TILE_ZERO(3);
    for (Index k = 0; k < whole; k += tile) {
      add_tiles(a + k * tile, next_group, product.b + k * product.b_stride, product.b_stride, both);
    }
    if (rest > 0) {
      for (Index group = 0; group <= Index(both); ++group) {
        std::fill_n(&last.a[group][0], tile_elements, Element{});
        std::copy_n(a + group * next_group + whole * tile, rest * tile, last.a[group]);
        transpose(last.a[group], last.a[group]);
      }
      add_tiles(last.a[0], tile_elements, last.b, width, both);
    }
    constexpr Index stride = width * sizeof(sums[0]);
    STM_FAST_TILE_STORE(0, sums, stride);
    STM_FAST_TILE_STORE(1, sums + tile, stride);
    STM_FAST_TILE_STORE(2, sums + tile * width, stride);
    STM_FAST_TILE_STORE(3, sums + tile * width + tile, stride);
    STM_FAST_UNROLL for (Index lane = 0; lane < width; lane += tile) {
      finish(row, (both ? 2 : 1) * tile, lane, sums + lane, width);
    }
  }
  STM_FAST_TILE_RELEASE();
}

// What becomes of the sums of `rows` rows and 16 lanes, `stride` apart.
template <Update update>
struct UpdatedSums {
  const Product<BFloat16Pair>& product;
  const float* scale;

  STM_FAST_INLINE void operator()(Index row, Index rows, Index lane, const float* sums, Index stride) const {
    for (Index i = 0; i < rows; ++i) {
      float* const at = product.c + (row + i) * product.c_stride + lane;
      update_sum<update, float>(at, load(sums + i * stride), scale, lane);
    }
  }
};

template <class Element>
struct ScoresOfSums {
  const Product<Element>& product;
  const ScoreScales<Element>& scales;

  STM_FAST_INLINE void operator()(Index row, Index rows, Index lane, const Register<Element>* sums,
                                  Index stride) const {
    const LaneScales<Element> of_lanes(scales, product.c_stride, lane);
    for (Index i = 0; i < rows; ++i) {
      const auto sum = load(sums + i * stride) + fill(scales.start[row + i]);
      store(product.c + (row + i) * product.c_stride + lane, score_of(sum, row + i, scales, of_lanes));
    }
  }
};

template <class Element>
struct AddedValues {
  const Product<Element>& product;
  const float* row_scale;
  const BlockSoftmax& state;

  STM_FAST_INLINE void operator()(Index row, Index rows, Index lane, const Register<Element>* sums,
                                  Index stride) const {
    const Vector<float> rescale = load(state.rescale + lane), part_scale = load(state.part_scale + lane);
    for (Index i = 0; i < rows; ++i) {
      float* const at = product.c + (row + i) * product.c_stride + lane;
      store(at, with_part(at, load(sums + i * stride), row_scale[row + i], rescale, part_scale));
    }
  }
};

STM_FAST_TARGET void scaled_tiles(const Product<BFloat16Pair>& product, float scale) {
  multiply_tiles(product, UpdatedSums<Update::assign>{product, &scale});
}
STM_FAST_TARGET void rescale_and_add_tiles(const Product<BFloat16Pair>& product, const float* scale) {
  multiply_tiles(product, UpdatedSums<Update::rescale>{product, scale});
}
template <class Element>
STM_FAST_TARGET void scores_of_tiles(const Product<Element>& product, const ScoreScales<Element>& scales) {
  multiply_tiles(product, ScoresOfSums<Element>{product, scales});
}
template <class Element>
STM_FAST_TARGET void add_values_of_tiles(const Product<Element>& product, const float* row_scale,
                                         const BlockSoftmax& state) {
  multiply_tiles(product, AddedValues<Element>{product, row_scale, state});
}

template <class Element>
constexpr QuantizedKernels<Element> quantized_tiles = {
    group_rows,
    lanes<float>,
    scores_of_tiles<Element>,
    softmax_step_of_block<Element>,
    add_values_of_tiles<Element>,
    scaled_product<float>,
    arrange<Element>,
};

extern const AmxKernels amx_kernels = {
    {group_rows, lanes<float>, scaled_tiles, rescale_and_add_tiles, softmax_step<BFloat16Pair>, arrange<BFloat16Pair>,
     nullptr},
    quantized_tiles<BFloat16Pair>,
};
extern const QuantizedKernels<ByteQuad> byte_kernels = quantized_tiles<ByteQuad>;

}  // namespace stm_fast::STM_FAST_ISA
