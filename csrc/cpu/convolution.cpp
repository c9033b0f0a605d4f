#include "stm_fast/convolution.h"

#include <algorithm>
#include <limits>
#include <type_traits>

#include "stm_fast/convolution_kernels.h"
#include "stm_fast/scratch.h"

namespace stm_fast {
namespace {

constexpr Index block_bytes = 128 * 1024;  // of inputs, which stay in a core's private cache for all output channels
constexpr Index pixel_unit = 24;           // whole tiles of every number of pixels

template <class Stored>
using ElementOf = std::conditional_t<std::is_same_v<Stored, BFloat16>, BFloat16Pair, Stored>;

const auto& kernels_of(const float*) { return convolution_kernels(); }
const auto& kernels_of(const BFloat16*) { return *convolution_pair_kernels(); }

template <class Stored>
class Convolver {
  using Element = ElementOf<Stored>;
  static constexpr Index numbers = ElementTraits<Element>::numbers;

 public:
  Convolver(const Convolution<Stored>& convolution, const Stored* x) : convolution_(convolution), x_(x) {
    task_.columns = convolution.out_channels;
    task_.parts = convolution.kernel;
    task_.depth = convolution.kernel * convolution.channels / numbers;
    task_.a_stride = convolution.stride * convolution.channels / numbers;
    task_.b = reinterpret_cast<const Element*>(convolution.weight);
    task_.bias = convolution.bias;
    task_.add = convolution.add;
    task_.least = convolution.relu ? 0.0f : -std::numeric_limits<float>::infinity();
  }

  // Some pixels of a convolution whose pixels are independent.
  void block(Index first, Index pixels, Stored* y) const {
    run(x_ + first * convolution_.channels, pixels, y + first * convolution_.out_channels);
  }

  // A row of outputs, numbered over all images, to `to`.
  void row(Index index, Stored* to) const {
    const Index rows = convolution_.out_height();
    const Index line = index / rows * convolution_.height + index % rows * convolution_.stride;
    run(x_ + line * convolution_.width * convolution_.channels, convolution_.out_width(), to);
  }

 private:
  void run(const Stored* from, Index pixels, Stored* to) const {
    ConvolvedPixels<Element, Stored> task = task_;
    task.pixels = pixels;
    task.y = to;
    for (Index part = 0; part < convolution_.kernel; ++part) {
      task.a[part] = reinterpret_cast<const Element*>(from + part * convolution_.width * convolution_.channels);
    }
    kernels_of(x_).convolve(task);
  }

  const Convolution<Stored>& convolution_;
  const Stored* x_;
  ConvolvedPixels<Element, Stored> task_{};
};

// Makes each line once, just before it is used: lines [begin, end) of consecutive ranges.
class Lines {
 public:
  template <class Make>
  void up_to(Index begin, Index end, const Make& make) {
    for (next_ = std::max(next_, begin); next_ < end; ++next_) {
      make(next_);
    }
  }

 private:
  Index next_ = 0;
};

constexpr Index kept_lines = 3;

// Pooled rows, numbered over all images; those of a thread are consecutive.
template <class Stored>
class Pooler {
 public:
  Pooler(const Convolution<Stored>& convolution, Carver& carver)
      : convolution_(convolution), row_numbers_(convolution.out_width() * convolution.out_channels) {
    lines_ = carver.take<Stored>(kept_lines * row_numbers_);
  }

  void run(const Convolver<Stored>& convolver, Lines& lines, Index index, const Stored* added, bool shared,
           Stored* y) const {
    const Index height = convolution_.out_height(), rows = divide_up(height, Index{2});
    const Index start = index / rows * height, middle = start + index % rows * 2;
    const Index first = std::max(middle - 1, start), last = std::min(middle + 1, start + height - 1);
    lines.up_to(first, last + 1, [&](Index line) {
      if (added != nullptr) {
        std::copy_n(added + (shared ? line % height : line) * row_numbers_, row_numbers_, at(line));
      }
      convolver.row(line, at(line));
    });
    const Index width = convolution_.out_width();
    kernels_of(y).pool({width,
                        convolution_.out_channels,
                        {at(first), at(middle), at(last)},
                        y + index * divide_up(width, Index{2}) * convolution_.out_channels});
  }

 private:
  Stored* at(Index line) const { return lines_ + line % kept_lines * row_numbers_; }

  const Convolution<Stored>& convolution_;
  Index row_numbers_;
  Stored* lines_;
};

float without_negative(float x) { return x < 0 ? 0.0f : x; }
BFloat16 without_negative(BFloat16 x) { return widen(x) < 0 ? BFloat16{} : x; }

constexpr Index narrow_taps = 9;

// Rows of outputs of a narrow convolution, numbered over all images; those of a thread are consecutive.
template <class Stored>
class NarrowConvolver {
  using Element = ElementOf<Stored>;

 public:
  NarrowConvolver(const NarrowConvolution<Stored>& convolution, Carver& carver)
      : convolution_(convolution),
        columns_(round_up(narrow_taps * convolution.out_channels, panel_lanes)),
        line_numbers_((convolution.width + 2) * columns_) {
    products_ = carver.take<float>((kept_lines + 1) * line_numbers_);
    inputs_ = carver.take<Stored>(pixel_unit * convolution.channels);
  }

  // The borders of lines, and a line outside of an image, are zeros.
  void clear() const { std::fill_n(products_, (kept_lines + 1) * line_numbers_, 0.0f); }

  void run(Lines& lines, Index index, const Stored* x, Stored* y) const {
    const Index height = convolution_.height, start = index / height * height, end = start + height;
    lines.up_to(std::max(index - 1, start), std::min(index + 2, end), [&](Index line) { multiply(line, x); });
    const float* near[3];
    for (Index i = 0; i < 3; ++i) {
      const Index line = index + i - 1;
      near[i] = at(line < start || line >= end ? kept_lines : line % kept_lines);
    }
    collect(near, y + index * convolution_.width * convolution_.out_channels);
  }

 private:
  float* at(Index slot) const { return products_ + slot * line_numbers_; }

  void multiply(Index line, const Stored* x) const {
    const Index channels = convolution_.channels;
    for (Index first = 0; first < convolution_.width; first += pixel_unit) {
      const Index pixels = std::min(pixel_unit, convolution_.width - first);
      const Stored* from = x + (line * convolution_.width + first) * channels;
      if (convolution_.relu) {
        std::transform(from, from + pixels * channels, inputs_, [](Stored number) { return without_negative(number); });
        from = inputs_;
      }
      PixelProduct<Element> product{};
      product.pixels = pixels;
      product.columns = columns_;
      product.parts = 1;
      product.depth = product.a_stride = channels / ElementTraits<Element>::numbers;
      product.a[0] = reinterpret_cast<const Element*>(from);
      product.b = reinterpret_cast<const Element*>(convolution_.weight);
      product.panel_stride = product.depth * panel_lanes;
      product.c = at(line % kept_lines) + (first + 1) * columns_;
      product.c_stride = columns_;
      pixel_kernels<Element>().plain(product);
    }
  }

  // Adds the products of all taps of a row of outputs.
  void collect(const float* const (&near)[3], Stored* y) const {
    const Index outputs = convolution_.out_channels;
    for (Index pixel = 0; pixel < convolution_.width; ++pixel) {
      for (Index k = 0; k < outputs; ++k) {
        float sum = convolution_.bias[k];
        for (Index tap = 0; tap < narrow_taps; ++tap) {
          sum += near[tap / 3][(pixel + tap % 3) * columns_ + tap * outputs + k];
        }
        y[pixel * outputs + k] = narrow<Stored>(sum);
      }
    }
  }

  const NarrowConvolution<Stored>& convolution_;
  Index columns_;
  Index line_numbers_;
  float* products_;  // [lines, width + 2, columns], and a line of zeros
  Stored* inputs_;   // after relu
};

// Calls task(worker, lines, row) for all rows; the rows of a thread are consecutive.
template <class Worker, class Problem, class Start, class Task>
void run_rows(const Problem& problem, Index rows, const Parallel& parallel, const Start& start, const Task& task) {
  Carver counted(nullptr);
  Worker(problem, counted);
  const Index threads = parallel.threads, bytes = counted.used();
  const Scratch scratch(threads * bytes);
  parallel.run(threads, [&](Index thread) {
    Carver carver(scratch.get() + thread * bytes);
    const Worker worker(problem, carver);
    start(worker);
    Lines lines;
    for (Index row = rows * thread / threads; row < rows * (thread + 1) / threads; ++row) {
      task(worker, lines, row);
    }
  });
}

}  // namespace

template <class Stored>
void convolve(const Convolution<Stored>& convolution, const Stored* x, Stored* y, const Parallel& parallel) {
  const Convolver<Stored> convolver(convolution, x);
  const bool independent = convolution.kernel == 1 && convolution.stride == 1;
  const Index rows = convolution.batch * convolution.out_height(), width = convolution.out_width();
  const Index pixels = rows * width, pixel_bytes = convolution.channels * static_cast<Index>(sizeof(Stored));
  const Index fitting = block_bytes / std::max<Index>(1, pixel_bytes);
  const Index block = std::max(fitting / pixel_unit, Index{1}) * pixel_unit;
  const Index threads = parallel.threads, runs = independent ? divide_up(pixels, block) : rows;
  parallel.run(threads, [&](Index thread) {
    for (Index run = runs * thread / threads; run < runs * (thread + 1) / threads; ++run) {
      if (independent) {
        convolver.block(run * block, std::min(block, pixels - run * block), y);
      } else {
        convolver.row(run, y + run * width * convolution.out_channels);
      }
    }
  });
}

template <class Stored>
void convolve_and_pool(const Convolution<Stored>& convolution, const Stored* x, const Stored* added, bool shared,
                       Stored* y, const Parallel& parallel) {
  Convolution<Stored> activated = convolution;
  activated.add = added != nullptr;
  activated.relu = true;
  const Convolver<Stored> convolver(activated, x);
  const Index rows = convolution.batch * divide_up(convolution.out_height(), Index{2});
  const auto nothing = [](const Pooler<Stored>&) {};
  run_rows<Pooler<Stored>>(activated, rows, parallel, nothing,
                           [&](const Pooler<Stored>& pooler, Lines& lines, Index row) {
                             pooler.run(convolver, lines, row, added, shared, y);
                           });
}

template <class Stored>
void convolve_narrow(const NarrowConvolution<Stored>& convolution, const Stored* x, Stored* y,
                     const Parallel& parallel) {
  using Worker = NarrowConvolver<Stored>;
  run_rows<Worker>(
      convolution, convolution.batch * convolution.height, parallel, [](const Worker& worker) { worker.clear(); },
      [&](const Worker& worker, Lines& lines, Index row) { worker.run(lines, row, x, y); });
}

#define STM_FAST_INSTANTIATE(Stored)                                                                       \
  template void convolve(const Convolution<Stored>&, const Stored*, Stored*, const Parallel&);             \
  template void convolve_and_pool(const Convolution<Stored>&, const Stored*, const Stored*, bool, Stored*, \
                                  const Parallel&);                                                        \
  template void convolve_narrow(const NarrowConvolution<Stored>&, const Stored*, Stored*, const Parallel&);
STM_FAST_INSTANTIATE(float)
STM_FAST_INSTANTIATE(BFloat16)

}  // namespace stm_fast
