#include "stm_fast/convolution.h"

#include <algorithm>
#include <limits>
#include <type_traits>

#include "stm_fast/convolution_kernels.h"

namespace stm_fast {
namespace {

constexpr Index block_bytes = 128 * 1024;  // of inputs, which stay in a core's private cache for all output channels
constexpr Index pixel_unit = 24;           // whole tiles of every number of pixels

template <class Stored>
using ElementOf = std::conditional_t<std::is_same_v<Stored, BFloat16>, BFloat16Pair, Stored>;

const auto& kernels_of(const float*) { return convolution_kernels(); }
const auto& kernels_of(const BFloat16*) { return *convolution_pair_kernels(); }

// Runs of outputs whose inputs are `stride` pixels apart: rows of outputs, or blocks of the pixels of all images.
struct Runs {
  template <class Stored>
  explicit Runs(const Convolution<Stored>& convolution) {
    const Index rows = convolution.batch * convolution.out_height();
    joined = convolution.kernel == 1 && convolution.stride == 1;
    pixels = joined ? rows * convolution.out_width() : convolution.out_width();
    const Index fitting = block_bytes / (convolution.channels * static_cast<Index>(sizeof(Stored)));
    block = joined ? std::max(fitting / pixel_unit, Index{1}) * pixel_unit : pixels;
    count = joined ? divide_up(pixels, block) : rows;
  }

  bool joined;
  Index pixels;  // of all blocks, or of a row
  Index block;
  Index count;
};

template <class Stored>
class Convolver {
  using Element = ElementOf<Stored>;
  static constexpr Index numbers = ElementTraits<Element>::numbers;

 public:
  Convolver(const Convolution<Stored>& convolution, const Stored* x, Stored* y)
      : convolution_(convolution), runs_(convolution), x_(x), y_(y) {
    task_.columns = convolution.out_channels;
    task_.parts = convolution.kernel;
    task_.depth = convolution.kernel * convolution.channels / numbers;
    task_.a_stride = convolution.stride * convolution.channels / numbers;
    task_.b = reinterpret_cast<const Element*>(convolution.weight);
    task_.bias = convolution.bias;
    task_.add = convolution.add;
    task_.least = convolution.relu ? 0.0f : -std::numeric_limits<float>::infinity();
  }

  Index runs() const { return runs_.count; }

  void run(Index index) const {
    const Index first = index * runs_.block;
    ConvolvedPixels<Element, Stored> task = task_;
    task.pixels = runs_.joined ? std::min(runs_.block, runs_.pixels - first) : runs_.pixels;
    task.y = y_ + first * convolution_.out_channels;
    const Index line = convolution_.width * convolution_.channels;
    const Stored* const from = x_ + (runs_.joined ? first * convolution_.channels : first_line(index) * line);
    for (Index part = 0; part < convolution_.kernel; ++part) {
      task.a[part] = reinterpret_cast<const Element*>(from + part * line);
    }
    kernels_of(x_).convolve(task);
  }

 private:
  // Of the inputs of a row of outputs.
  Index first_line(Index row) const {
    const Index rows = convolution_.out_height();
    return row / rows * convolution_.height + row % rows * convolution_.stride;
  }

  const Convolution<Stored>& convolution_;
  Runs runs_;
  const Stored* x_;
  Stored* y_;
  ConvolvedPixels<Element, Stored> task_{};
};

}  // namespace

template <class Stored>
void convolve(const Convolution<Stored>& convolution, const Stored* x, Stored* y, const Parallel& parallel) {
  const Convolver<Stored> convolver(convolution, x, y);
  const Index threads = parallel.threads, runs = convolver.runs();
  parallel.run(threads, [&](Index thread) {
    for (Index run = runs * thread / threads; run < runs * (thread + 1) / threads; ++run) {
      convolver.run(run);
    }
  });
}

template void convolve(const Convolution<float>&, const float*, float*, const Parallel&);
template void convolve(const Convolution<BFloat16>&, const BFloat16*, BFloat16*, const Parallel&);

}  // namespace stm_fast
