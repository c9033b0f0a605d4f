#include "stm_fast/inverted_bottleneck.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "stm_fast/bottleneck_kernels.h"
#include "stm_fast/scratch.h"

namespace stm_fast {
namespace {

// Lines of inputs with their borders, as many as the window height: line y is in slot y % kernel.
class Ring {
 public:
  Ring() = default;
  Ring(const Window& window, Index channels, Carver& carver)
      : window_(window), channels_(channels), width_(width_of(window)) {
    floats_ = carver.take<float>((window.kernel + 1) * width_ * channels);
  }

  // The length of a line per channel, as read by all outputs of whole groups.
  static Index width_of(const Window& window) {
    const Index outputs = round_up(window.out_width(), pixel_group);
    return std::max((outputs - 1) * window.stride + window.kernel, window.left() + window.width);
  }

  void clear() const { std::fill_n(floats_, (window_.kernel + 1) * width_ * channels_, 0.0f); }

  // The start of the inputs of a line.
  float* line(Index y) const { return slot(y % window_.kernel) + window_.left() * channels_; }

  // The lines that a row of outputs reads, from their borders on; zeros for lines outside the image.
  void lines_of(Index output, const float** lines) const {
    const Index first = output * window_.stride - window_.top();
    for (Index i = 0; i < window_.kernel; ++i) {
      const Index y = first + i;
      lines[i] = slot(y < 0 || y >= window_.height ? window_.kernel : y % window_.kernel);
    }
  }

 private:
  float* slot(Index index) const { return floats_ + index * width_ * channels_; }

  Window window_{};
  Index channels_ = 0;
  Index width_ = 0;
  float* floats_ = nullptr;
};

// Calls `make(y)` once for each line of inputs of a strip, just before the first row of outputs that reads it.
class Lines {
 public:
  explicit Lines(const Window& window) : window_(window) {}

  template <class Make>
  void up_to(Index output, const Make& make) {
    const Index first = output * window_.stride - window_.top();
    next_ = std::max({next_, first, Index{0}});
    for (const Index end = std::min(first + window_.kernel, window_.height); next_ < end; ++next_) {
      make(next_);
    }
  }

 private:
  Window window_;
  Index next_ = 0;
};

// How the output rows of an image are divided: each strip recomputes the lines that it shares with the previous one.
struct Strips {
  Index batch, rows;  // output rows of an image
  Index height;       // of a strip
  Index of_picture() const { return divide_up(rows, height); }
  Index count() const { return batch * of_picture(); }
};

Strips strips_of(const Window& window, Index batch, Index most_rows, Index threads) {
  const Index rows = window.out_height();
  // a multiple of the threads, so that all of them finish together
  const Index wanted = round_up(std::max(batch * divide_up(rows, most_rows), threads), threads);
  return {batch, rows, std::max<Index>(divide_up(rows, divide_up(wanted, batch)), 1)};
}

// Calls `work(thread, image, first row, rows)` for all strips, on at most this many threads.
template <class Work>
void for_strips(const Strips& strips, const Parallel& parallel, const Work& work) {
  const Index threads = parallel.threads, count = strips.count(), each = strips.of_picture();
  parallel.run(threads, [&](Index thread) {
    for (Index strip = thread * count / threads; strip < (thread + 1) * count / threads; ++strip) {
      const Index first = strip % each * strips.height;
      work(thread, strip / each, first, std::min(strips.height, strips.rows - first));
    }
  });
}

void widen_line(const BFloat16* from, Index count, float* to) { bottleneck_kernels().widen(from, count, to); }
void widen_line(const float* from, Index count, float* to) { std::copy_n(from, count, to); }

void finish(const FinishedRow<float>& row) { bottleneck_kernels().finish(row); }
void finish(const FinishedRow<BFloat16>& row) { bottleneck_kernels().finish_bfloat16(row); }

constexpr Index block_unit = 48;                // channels: whole tiles and panels for every instruction set
constexpr Index block_bytes = 3 * 64 * 1024;    // of a block's ring, outputs and weights: less than an L2 cache
constexpr Index strip_bytes = 2 * 1024 * 1024;  // of the inputs and sums of a strip, which each block reads

// The scratch layout of weights and lines of a thread, and how many channels it processes at once.
template <class Stored, class Element>
struct Plan {
  static constexpr bool widens = !std::is_same_v<Stored, Element> && std::is_same_v<Element, float>;

  Plan(const Bottleneck<Stored>& bottleneck, Index batch, Index threads) {
    const Window& window = bottleneck.window;
    const Index width = window.width, out_width = window.out_width();
    out_pixels = round_up(out_width, pixel_group);
    columns = round_up(bottleneck.out_channels, panel_lanes);
    depth = depth_of<Element>(bottleneck.channels);
    const Index per_channel = (window.kernel + 1) * Ring::width_of(window) + out_pixels +
                              (bottleneck.expand == nullptr ? 0 : bottleneck.channels) + columns;
    const Index fitting = block_bytes / (per_channel * static_cast<Index>(sizeof(float))) / block_unit * block_unit;
    block = std::min(std::max(fitting, block_unit), round_up(bottleneck.expanded, panel_lanes));
    one_block = block >= bottleneck.expanded;
    const Index row_bytes = static_cast<Index>(sizeof(float)) * columns * out_pixels +
                            static_cast<Index>(sizeof(Stored)) * window.stride * width * bottleneck.channels;
    // far more than the rows that a strip recomputes
    const Index most_rows = std::max(strip_bytes / row_bytes, 4 * window.kernel);
    strips = strips_of(window, batch, most_rows, threads);
  }

  Index block;       // channels of the expanded image
  bool one_block;    // whether a block has all of them
  Index depth;       // of the first product, in elements
  Index columns;     // of the last product's sums
  Index out_pixels;  // of a row, in whole groups
  Strips strips;
};

template <class Stored, class Element>
class StripWorker {
  using Planned = Plan<Stored, Element>;

 public:
  StripWorker(const Bottleneck<Stored>& bottleneck, const Planned& plan, Carver& carver)
      : bottleneck_(bottleneck),
        plan_(plan),
        kernels_(pixel_kernels<Element>()),
        ring_(bottleneck.window, plan.block, carver) {
    const Window& window = bottleneck.window;
    between_ = carver.take<float>(plan.out_pixels * plan.block);
    sums_ = carver.take<float>((plan.one_block ? 1 : plan.strips.height) * window.out_width() * plan.columns);
    line_ = carver.take<Element>(window.width * plan.depth);
    if constexpr (Planned::widens) {
      expand_ = carver.take<float>(plan.block * round_up(bottleneck.channels, 2));
      project_ = carver.take<float>(plan.columns * plan.block);
    }
  }

  void clear() const { ring_.clear(); }

  void run(const Stored* x, const Stored* residual, Stored* y, Index first, Index rows) const {
    for (Index begin = 0; begin < bottleneck_.expanded; begin += plan_.block) {
      const Block block = block_from(begin);
      Lines lines(bottleneck_.window);
      for (Index row = first; row < first + rows; ++row) {
        lines.up_to(row, [&](Index line) { make_line(block, x, line); });
        make_outputs(block, row);
        float* const sums =
            sums_ + (plan_.one_block ? 0 : (row - first) * bottleneck_.window.out_width() * plan_.columns);
        add_sums(block, sums);
        if (begin + plan_.block >= bottleneck_.expanded) {
          finish_sums(sums, residual, y, row);
        }
      }
    }
  }

 private:
  // Some channels of the expanded image, and their weights.
  struct Block {
    Index begin, channels;
    const Element* expand;
    const Element* project;
    Index project_stride;  // from a panel to the next
  };

  Block block_from(Index begin) const {
    const Bottleneck<Stored>& all = bottleneck_;
    Block block{begin, std::min(plan_.block, all.expanded - begin), nullptr, nullptr, 0};
    const Index panel = begin / panel_lanes, panels = divide_up(block.channels, panel_lanes);
    if constexpr (Planned::widens) {
      const BottleneckKernels& kernels = bottleneck_kernels();
      const Index depth = divide_up(all.channels, 2) * panel_lanes;
      if (all.expand != nullptr) {
        kernels.widen_pairs(pairs(all.expand) + panel * depth, panels * depth, expand_);
      }
      const Index rows = divide_up(block.channels, 2), all_rows = divide_up(all.expanded, 2);
      for (Index i = 0; i < plan_.columns / panel_lanes; ++i) {
        kernels.widen_pairs(pairs(all.project) + (i * all_rows + begin / 2) * panel_lanes, rows * panel_lanes,
                            project_ + i * plan_.block * panel_lanes);
      }
      block.expand = expand_;
      block.project = project_;
      block.project_stride = plan_.block * panel_lanes;
    } else {
      constexpr Index numbers = ElementTraits<Element>::numbers;
      block.expand = elements(all.expand) + (all.expand == nullptr ? 0 : panel * plan_.depth * panel_lanes);
      block.project = elements(all.project) + begin / numbers * panel_lanes;
      block.project_stride = depth_of<Element>(all.expanded) * panel_lanes;
    }
    return block;
  }

  static const BFloat16Pair* pairs(const BFloat16* from) { return reinterpret_cast<const BFloat16Pair*>(from); }
  static const Element* elements(const Stored* from) { return reinterpret_cast<const Element*>(from); }

  void make_line(const Block& block, const Stored* x, Index line) const {
    const Bottleneck<Stored>& all = bottleneck_;
    const Stored* const from = x + line * all.window.width * all.channels;
    float* const to = ring_.line(line);
    if (all.expand == nullptr) {
      if (plan_.block == all.channels) {
        return widen_line(from, all.window.width * all.channels, to);
      }
      for (Index pixel = 0; pixel < all.window.width; ++pixel) {
        widen_line(from + pixel * all.channels + block.begin, block.channels, to + pixel * plan_.block);
      }
      return;
    }
    PixelProduct<Element> product = product_of(all.window.width, block.channels, plan_.depth, to, plan_.block);
    product.a[0] = elements_of_line(from);
    product.a_stride = plan_.depth;
    product.b = block.expand;
    // panels of converted weights have space for the second number of a last pair
    product.panel_stride = (Planned::widens ? round_up(all.channels, 2) : plan_.depth) * panel_lanes;
    product.bias = all.expand_bias + block.begin;
    kernels_.activated(product);
  }

  const Element* elements_of_line(const Stored* from) const {
    const Bottleneck<Stored>& all = bottleneck_;
    if constexpr (Planned::widens) {
      bottleneck_kernels().widen(from, all.window.width * all.channels, line_);
      return line_;
    } else if constexpr (std::is_same_v<Stored, Element>) {
      return from;
    } else {
      // elements can be used in place, unless the last one of a pixel would contain a number of the next pixel
      if (all.channels % 2 == 0 && reinterpret_cast<std::uintptr_t>(from) % alignof(Element) == 0) {
        return elements(from);
      }
      for (Index pixel = 0; pixel < all.window.width; ++pixel) {
        Element* const to = line_ + pixel * plan_.depth;
        to[plan_.depth - 1] = {};
        std::memcpy(to, from + pixel * all.channels, static_cast<std::size_t>(all.channels) * sizeof(Stored));
      }
      return line_;
    }
  }

  // A product with one part.
  static PixelProduct<Element> product_of(Index pixels, Index columns, Index depth, float* c, Index c_stride) {
    PixelProduct<Element> product{};
    product.pixels = pixels;
    product.columns = columns;
    product.parts = 1;
    product.depth = depth;
    product.c = c;
    product.c_stride = c_stride;
    return product;
  }

  void make_outputs(const Block& block, Index row) const {
    const Window& window = bottleneck_.window;
    DepthwiseRow outputs{};
    outputs.pixels = plan_.out_pixels;
    outputs.channels = round_up(block.channels, panel_lanes);
    outputs.stride = plan_.block;
    ring_.lines_of(row, outputs.lines);
    outputs.weight = bottleneck_.depthwise + block.begin;
    outputs.weight_stride = round_up(bottleneck_.expanded, panel_lanes);
    outputs.bias = bottleneck_.depthwise_bias + block.begin;
    outputs.out = between_;
    kernels_.depthwise[window.kernel == most_taps][window.stride == 2](outputs);
    if constexpr (std::is_same_v<Element, BFloat16Pair>) {
      // 0 * inf would be NaN
      if (block.channels % 2 != 0) {
        auto* const numbers = reinterpret_cast<BFloat16*>(between_);
        for (Index pixel = 0; pixel < plan_.out_pixels; ++pixel) {
          numbers[pixel * plan_.block + block.channels] = {};
        }
      }
    }
  }

  void add_sums(const Block& block, float* sums) const {
    constexpr Index numbers = ElementTraits<Element>::numbers;
    PixelProduct<Element> product = product_of(bottleneck_.window.out_width(), bottleneck_.out_channels,
                                               depth_of<Element>(block.channels), sums, plan_.columns);
    product.a[0] = reinterpret_cast<const Element*>(between_);
    product.a_stride = plan_.block / numbers;
    product.b = block.project;
    product.panel_stride = block.project_stride;
    product.add = block.begin > 0;
    kernels_.plain(product);
  }

  void finish_sums(const float* sums, const Stored* residual, Stored* y, Index row) const {
    const Index width = bottleneck_.window.out_width(), at = row * width * bottleneck_.out_channels;
    finish(FinishedRow<Stored>{width, bottleneck_.out_channels, sums, plan_.columns, bottleneck_.project_bias,
                               residual == nullptr ? nullptr : residual + at, y + at});
  }

  Bottleneck<Stored> bottleneck_;
  Planned plan_;
  const PixelKernels<Element>& kernels_;
  Ring ring_;                // of expanded inputs
  float* between_;           // [out_pixels, block] outputs of the depthwise convolution, in the type of Element
  float* sums_;              // [rows of a strip, W, columns], or of one row
  Element* line_;            // [W, depth] inputs, if they cannot be multiplied in place
  float* expand_ = nullptr;  // the block's weights, if they cannot
  float* project_ = nullptr;
};

template <class Stored, class Element>
void run_bottleneck(const Bottleneck<Stored>& bottleneck, Index batch, const Stored* x, const Stored* residual,
                    Stored* y, const Parallel& parallel) {
  using Worker = StripWorker<Stored, Element>;
  const Plan<Stored, Element> plan(bottleneck, batch, parallel.threads);
  Carver counted(nullptr);
  Worker(bottleneck, plan, counted);
  const Scratch scratch(counted.used() * parallel.threads);
  const Window& window = bottleneck.window;
  const Index x_stride = window.height * window.width * bottleneck.channels;
  const Index y_stride = window.out_height() * window.out_width() * bottleneck.out_channels;
  for_strips(plan.strips, parallel, [&](Index thread, Index picture, Index first, Index rows) {
    Carver carver(scratch.get() + thread * counted.used());
    const Worker worker(bottleneck, plan, carver);
    worker.clear();
    worker.run(x + picture * x_stride, residual == nullptr ? nullptr : residual + picture * y_stride,
               y + picture * y_stride, first, rows);
  });
}

// The output rows of a strip of the first convolution.
template <class Stored>
class FirstWorker {
 public:
  FirstWorker(const FirstConvolution& convolution, Carver& carver)
      : convolution_(convolution), ring_(convolution.window, convolution.channels, carver) {
    columns_ = round_up(convolution.out_channels, panel_lanes);
    sums_ = carver.take<float>(convolution.window.out_width() * columns_);
  }

  void clear() const { ring_.clear(); }

  void run(const Stored* x, Stored* y, Index first, Index rows) const {
    const Window& window = convolution_.window;
    const Index line_numbers = window.width * convolution_.channels, width = window.out_width();
    Lines lines(window);
    for (Index row = first; row < first + rows; ++row) {
      lines.up_to(row, [&](Index line) { widen_line(x + line * line_numbers, line_numbers, ring_.line(line)); });
      Stored* const to = y + row * width * convolution_.out_channels;
      if constexpr (std::is_same_v<Stored, float>) {
        // whole panels can be written directly
        if (columns_ == convolution_.out_channels) {
          multiply(row, to);
          continue;
        }
      }
      multiply(row, sums_);
      finish(FinishedRow<Stored>{width, convolution_.out_channels, sums_, columns_, nullptr, nullptr, to});
    }
  }

 private:
  void multiply(Index row, float* to) const {
    const Window& window = convolution_.window;
    PixelProduct<float> product{};
    product.pixels = window.out_width();
    product.columns = convolution_.out_channels;
    product.parts = window.kernel;
    product.depth = window.kernel * convolution_.channels;
    ring_.lines_of(row, product.a);
    product.a_stride = window.stride * convolution_.channels;
    product.b = convolution_.weight;
    product.panel_stride = window.kernel * product.depth * panel_lanes;
    product.c = to;
    product.c_stride = columns_;
    product.bias = convolution_.bias;
    bottleneck_kernels().activated(product);
  }

  FirstConvolution convolution_;
  Ring ring_;
  Index columns_;
  float* sums_;
};

}  // namespace

template <class Stored>
void inverted_bottleneck(const Bottleneck<Stored>& bottleneck, Index batch, const Stored* x, const Stored* residual,
                         Stored* y, const Parallel& parallel) {
  if constexpr (std::is_same_v<Stored, BFloat16>) {
    if (bottleneck_pair_kernels() != nullptr) {
      return run_bottleneck<Stored, BFloat16Pair>(bottleneck, batch, x, residual, y, parallel);
    }
  }
  run_bottleneck<Stored, float>(bottleneck, batch, x, residual, y, parallel);
}

template <class Stored>
void first_convolution(const FirstConvolution& convolution, Index batch, const Stored* x, Stored* y,
                       const Parallel& parallel) {
  using Worker = FirstWorker<Stored>;
  const Window& window = convolution.window;
  const Strips strips = strips_of(window, batch, window.out_height(), parallel.threads);
  Carver counted(nullptr);
  Worker(convolution, counted);
  const Scratch scratch(counted.used() * parallel.threads);
  const Index x_stride = window.height * window.width * convolution.channels;
  const Index y_stride = window.out_height() * window.out_width() * convolution.out_channels;
  for_strips(strips, parallel, [&](Index thread, Index picture, Index first, Index rows) {
    Carver carver(scratch.get() + thread * counted.used());
    const Worker worker(convolution, carver);
    worker.clear();
    worker.run(x + picture * x_stride, y + picture * y_stride, first, rows);
  });
}

#define STM_FAST_INSTANTIATE(Stored)                                                                         \
  template void inverted_bottleneck(const Bottleneck<Stored>&, Index, const Stored*, const Stored*, Stored*, \
                                    const Parallel&);                                                        \
  template void first_convolution(const FirstConvolution&, Index, const Stored*, Stored*, const Parallel&);
STM_FAST_INSTANTIATE(float)
STM_FAST_INSTANTIATE(BFloat16)

}  // namespace stm_fast
