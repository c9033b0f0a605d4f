#include "stm_fast/winograd.h"

#include <algorithm>
#include <type_traits>

#include "stm_fast/bottleneck_kernels.h"
#include "stm_fast/scratch.h"
#include "stm_fast/winograd_kernels.h"

namespace stm_fast {
namespace {

// Tiles of a chunk: enough to use each panel of weights often, few enough for their points to stay in a thread's share
// of the L3 cache.
constexpr Index most_tiles = 56;
constexpr Index most_point_bytes = Index{8} << 20;
// Sums of all points of a chunk, for some output channels, which stay in a core's private cache until they are
// transformed; and the channels that the products compute at once.
constexpr Index most_sum_bytes = Index{768} << 10;
constexpr Index column_unit = 48;
// Elements whose products are added one after another; then such sums are added, because rounding errors grow with the
// number of additions.
constexpr Index most_chain = 128;
constexpr Index tile_unit = 8;  // whole groups of rows of every set's products
// Chunks of a strip of a residual block: the weights of each convolution are used this often in turn, from the L3
// cache.
constexpr Index chunks_of_strip = 4;

// The stride of `count` elements, such that values of the points of one tile are in different sets of the caches.
template <class Element>
Index spread(Index count) {
  constexpr Index line = cache_line / static_cast<Index>(sizeof(Element));
  return (divide_up(count, line) | 1) * line;
}

template <class Stored, class Element>
auto kernels_of(Index tile) {
  if constexpr (std::is_same_v<Element, BFloat16Pair>) {
    return *winograd_pair_kernels();
  } else if constexpr (std::is_same_v<Stored, BFloat16>) {
    return winograd_kernels().bfloat16;
  } else {
    return tile == large_tile ? winograd_kernels().floats_of_large_tiles : winograd_kernels().floats;
  }
}

// Points are Elements: pairs of channels, or floats.
template <class Stored, class Element>
struct Plan {
  static constexpr bool widens = !std::is_same_v<Stored, Element> && std::is_same_v<Element, float>;
  static constexpr Index numbers = ElementTraits<Element>::numbers;

  explicit Plan(const WinogradConvolution<Stored>& convolution) {
    depth = depth_of<Element>(convolution.channels);
    // whole vectors are written
    point_row = round_up(convolution.channels, panel_lanes) / numbers;
    panels = divide_up(convolution.out_channels, panel_lanes);
    points = points_of_tile(convolution.tile);
    const Index bytes = points * point_row * static_cast<Index>(sizeof(Element));
    tiles =
        std::max(tile_unit, std::min(most_tiles, most_point_bytes / std::max<Index>(1, bytes) / tile_unit * tile_unit));
    const Index column_bytes = points * tiles * static_cast<Index>(sizeof(float));
    columns = std::max(column_unit, most_sum_bytes / column_bytes / column_unit * column_unit);
    columns = std::min(columns, panels * panel_lanes);
    point_stride = spread<Element>(tiles * point_row);
    sum_stride = spread<float>(tiles * columns);
  }

  Index points;
  Index tiles;         // of a chunk, at most
  Index depth;         // of the products, in elements
  Index point_row;     // from the points of a tile to the next, in elements
  Index point_stride;  // from a point to the next
  Index panels;
  Index columns;     // of a block of sums
  Index sum_stride;  // from a point to the next
};

template <class Stored, class Element>
class ChunkWorker {
  using Planned = Plan<Stored, Element>;
  using Point = std::conditional_t<std::is_same_v<Element, float>, float, BFloat16>;

 public:
  ChunkWorker(const WinogradConvolution<Stored>& convolution, const Planned& plan, Carver& carver)
      : convolution_(convolution), plan_(plan) {
    points_ = carver.take<Element>(plan.points * plan.point_stride);
    sums_ = carver.take<float>(plan.points * plan.sum_stride);
    if constexpr (Planned::widens) {
      weight_ = carver.take<float>(plan.columns * round_up(convolution.channels, 2));
    }
  }

  // Output channels of panels [begin, end) of some tiles.
  void run(const Image<const Stored>& x, const Image<Stored>& y, const Stored* residual, Index first_tile, Index tiles,
           Index begin, Index end) const {
    const TileRange of_points{first_tile, tiles, plan_.point_stride * Planned::numbers,
                              plan_.point_row * Planned::numbers};
    kernels_of<Stored, Element>(convolution_.tile)
        .input({x, of_points, reinterpret_cast<Point*>(points_), convolution_.relu_input});
    const Index step = plan_.columns / panel_lanes;
    for (Index panel = begin; panel < end; panel += step) {
      const Index first = panel * panel_lanes, columns = std::min(step, end - panel) * panel_lanes;
      for (Index point = 0; point < plan_.points; ++point) {
        multiply(point, panel, tiles, columns);
      }
      kernels_of<Stored, Element>(convolution_.tile)
          .output({.image = y,
                   .residual = residual,
                   .tiles = {first_tile, tiles, plan_.sum_stride, columns},
                   .sums = sums_,
                   .bias = convolution_.bias + first,
                   .first_channel = first,
                   .channels = std::min(columns, convolution_.out_channels - first),
                   .relu = convolution_.relu_output});
    }
  }

 private:
  void multiply(Index point, Index panel, Index tiles, Index columns) const {
    PixelProduct<Element> product{};
    product.pixels = tiles;
    product.columns = columns;
    product.parts = 1;
    product.depth = plan_.depth;
    product.chain = most_chain;
    product.a[0] = points_ + point * plan_.point_stride;
    product.a_stride = plan_.point_row;
    product.b = weight(point * plan_.panels + panel, columns / panel_lanes, product.panel_stride);
    product.c = sums_ + point * plan_.sum_stride;
    product.c_stride = columns;
    pixel_kernels<Element>().plain(product);
  }

  // Some panels of the weight, and the stride between them.
  const Element* weight(Index panel, Index panels, Index& stride) const {
    if constexpr (Planned::widens) {
      const Index pairs = divide_up(convolution_.channels, 2);
      stride = 2 * pairs * panel_lanes;
      const auto* const from = reinterpret_cast<const BFloat16Pair*>(convolution_.weight);
      bottleneck_kernels().widen_pairs(from + panel * pairs * panel_lanes, panels * pairs * panel_lanes, weight_);
      return weight_;
    } else {
      stride = plan_.depth * panel_lanes;
      return reinterpret_cast<const Element*>(convolution_.weight) + panel * stride;
    }
  }

  const WinogradConvolution<Stored>& convolution_;
  const Planned& plan_;
  Element* points_;          // [points, tiles, channels]
  float* sums_;              // [points, tiles, columns]
  float* weight_ = nullptr;  // panels as floats, if they cannot be multiplied in place
};

// A convolution on several threads.
template <class Stored, class Element>
class Convolver {
  using Worker = ChunkWorker<Stored, Element>;

 public:
  Convolver(const WinogradConvolution<Stored>& convolution, const Parallel& parallel)
      : convolution_(convolution), plan_(convolution), parallel_(parallel) {
    Carver counted(nullptr);
    Worker(convolution_, plan_, counted);
    thread_bytes_ = counted.used();
  }

  Index scratch_bytes() const { return parallel_.threads * thread_bytes_; }

  // Rows of tiles that keep every thread busy with one chunk.
  Index rows_at_a_time(Index across) const { return std::max<Index>(1, plan_.tiles * parallel_.threads / across); }

  // Tiles [first, first + tiles), in chunks of nearly equal size. With too few chunks for all threads, each is computed
  // by several, for some output channels each.
  void run(const Image<const Stored>& x, const Image<Stored>& y, const Stored* residual, Index first, Index tiles,
           std::byte* scratch) const {
    const Index threads = parallel_.threads, enough = divide_up(tiles, plan_.tiles);
    const Index chunks = enough < threads ? enough : std::min(round_up(enough, threads), divide_up(tiles, tile_unit));
    const Index groups = std::min(plan_.panels, divide_up(threads, chunks)), items = chunks * groups;
    const auto boundary = [&](Index chunk) { return std::min(tiles, round_up(chunk * tiles / chunks, tile_unit)); };
    parallel_.run(threads, [&](Index thread) {
      Carver carver(scratch + thread * thread_bytes_);
      const Worker worker(convolution_, plan_, carver);
      for (Index item = items * thread / threads; item < items * (thread + 1) / threads; ++item) {
        const Index chunk = item / groups, group = item % groups, begin = boundary(chunk), end = boundary(chunk + 1);
        worker.run(x, y, residual, first + begin, end - begin, plan_.panels * group / groups,
                   plan_.panels * (group + 1) / groups);
      }
    });
  }

 private:
  const WinogradConvolution<Stored>& convolution_;
  Plan<Stored, Element> plan_;
  const Parallel& parallel_;
  Index thread_bytes_;
};

template <class Stored>
Image<Stored> image_of(Stored* data, ImageSize size, Index channels) {
  return {data, size.height, size.width, channels, size.height};
}

template <class Stored>
Image<const Stored> constant(const Image<Stored>& image) {
  return {image.data, image.height, image.width, image.channels, image.stored_rows};
}

template <class Stored, class Element>
void convolve(const WinogradConvolution<Stored>& convolution, Index batch, ImageSize size, const Stored* x,
              const Stored* residual, Stored* y, const Parallel& parallel) {
  const Convolver<Stored, Element> convolver(convolution, parallel);
  const Scratch scratch(convolver.scratch_bytes());
  const Index tiles = divide_up(size.height, convolution.tile) * divide_up(size.width, convolution.tile);
  const Index pixels = size.height * size.width, out_numbers = pixels * convolution.out_channels;
  for (Index image = 0; image < batch; ++image) {
    convolver.run(image_of(x + image * pixels * convolution.channels, size, convolution.channels),
                  image_of(y + image * out_numbers, size, convolution.out_channels),
                  residual == nullptr ? nullptr : residual + image * out_numbers, 0, tiles, scratch.get());
  }
}

template <class Stored, class Element>
void run_block(const WinogradConvolution<Stored>& first, const WinogradConvolution<Stored>& second, Index batch,
               ImageSize size, Stored* x, const Parallel& parallel) {
  const Convolver<Stored, Element> one(first, parallel), two(second, parallel);
  const Scratch scratch(std::max(one.scratch_bytes(), two.scratch_bytes()));
  const Index tile = first.tile, rows = divide_up(size.height, tile), across = divide_up(size.width, tile);
  const Index step = std::min(rows, chunks_of_strip * one.rows_at_a_time(across)), strips = divide_up(rows, step);
  // the second convolution of a strip needs a row of the strip before and one of the strip after it
  const Index stored_rows = std::min(size.height, 3 * step * tile);
  const Index channels = first.channels, row_numbers = size.width * first.out_channels;
  const Scratch between(stored_rows * row_numbers * static_cast<Index>(sizeof(Stored)));
  const Image<Stored> middle{reinterpret_cast<Stored*>(between.get()), size.height, size.width, first.out_channels,
                             stored_rows};
  const auto tiles_of = [&](Index strip) { return std::min(step, rows - strip * step) * across; };
  for (Index index = 0; index < batch; ++index, x += size.height * size.width * channels) {
    const Image<Stored> image = image_of(x, size, channels);
    for (Index strip = 0; strip <= strips; ++strip) {
      if (strip < strips) {
        one.run(constant(image), middle, nullptr, strip * step * across, tiles_of(strip), scratch.get());
      }
      if (strip > 0) {
        two.run(constant(middle), image, x, (strip - 1) * step * across, tiles_of(strip - 1), scratch.get());
      }
    }
  }
}

// Calls function(Element{}) for the elements that the machine multiplies.
template <class Stored, class Function>
void for_element(const Function& function) {
  if constexpr (std::is_same_v<Stored, BFloat16>) {
    if (winograd_pair_kernels() != nullptr) {
      return function(BFloat16Pair{});
    }
  }
  function(float{});
}

}  // namespace

template <class Stored>
void winograd_convolution(const WinogradConvolution<Stored>& convolution, Index batch, ImageSize size, const Stored* x,
                          const Stored* residual, Stored* y, const Parallel& parallel) {
  for_element<Stored>(
      [&]<class Element>(Element) { convolve<Stored, Element>(convolution, batch, size, x, residual, y, parallel); });
}

template <class Stored>
void winograd_residual_block(const WinogradConvolution<Stored>& first, const WinogradConvolution<Stored>& second,
                             Index batch, ImageSize size, Stored* x, const Parallel& parallel) {
  for_element<Stored>(
      [&]<class Element>(Element) { run_block<Stored, Element>(first, second, batch, size, x, parallel); });
}

#define STM_FAST_INSTANTIATE(Stored)                                                                                   \
  template void winograd_convolution(const WinogradConvolution<Stored>&, Index, ImageSize, const Stored*,              \
                                     const Stored*, Stored*, const Parallel&);                                         \
  template void winograd_residual_block(const WinogradConvolution<Stored>&, const WinogradConvolution<Stored>&, Index, \
                                        ImageSize, Stored*, const Parallel&);
STM_FAST_INSTANTIATE(float)
STM_FAST_INSTANTIATE(BFloat16)

}  // namespace stm_fast
