#include "stm_fast/upsampling.h"

#include <algorithm>

#include "clones.h"
#include "stm_fast/number.h"
#include "stm_fast/scratch.h"

namespace stm_fast {
namespace {

constexpr float near_weight = 0.75f, far_weight = 0.25f;

// The input that output `index` is a quarter of, beside the one that contains it.
Index far_of(Index index, Index count) {
  return std::clamp(index % 2 == 0 ? index / 2 - 1 : index / 2 + 1, Index{0}, count - 1);
}

// One row of outputs from two rows of inputs; `mixed` is [width, channels].
template <class Stored>
inline __attribute__((always_inline)) void upsample_row(const Upsampling& size, const Stored* near, const Stored* far,
                                                        const Stored* detail, float* mixed, Stored* y) {
  const Index channels = size.channels, numbers = size.width * channels;
  for (Index i = 0; i < numbers; ++i) {
    mixed[i] = near_weight * widen(near[i]) + far_weight * widen(far[i]);
  }
  for (Index x = 0; x < 2 * size.width; ++x) {
    const float* const one = mixed + x / 2 * channels;
    const float* const other = mixed + far_of(x, size.width) * channels;
    const Stored* const added = detail + x * channels;
    Stored* const to = y + x * channels;
    for (Index c = 0; c < channels; ++c) {
      to[c] = narrow<Stored>(near_weight * one[c] + far_weight * other[c] + widen(added[c]));
    }
  }
}

STM_FAST_CLONES
void row_of(const Upsampling& size, const float* near, const float* far, const float* detail, float* mixed, float* y) {
  upsample_row(size, near, far, detail, mixed, y);
}
STM_FAST_CLONES
void row_of(const Upsampling& size, const BFloat16* near, const BFloat16* far, const BFloat16* detail, float* mixed,
            BFloat16* y) {
  upsample_row(size, near, far, detail, mixed, y);
}

}  // namespace

template <class Stored>
void upsample_and_add(const Upsampling& size, const Stored* x, const Stored* detail, Stored* y,
                      const Parallel& parallel) {
  const Index line = size.width * size.channels, height = 2 * size.height, rows = size.batch * height;
  const Index bytes = round_up(line * static_cast<Index>(sizeof(float)), cache_line), threads = parallel.threads;
  const Scratch scratch(threads * bytes);
  parallel.run(threads, [&](Index thread) {
    auto* const mixed = reinterpret_cast<float*>(scratch.get() + thread * bytes);
    for (Index row = rows * thread / threads; row < rows * (thread + 1) / threads; ++row) {
      const Index within = row % height;
      const Stored* const image = x + row / height * size.height * line;
      row_of(size, image + within / 2 * line, image + far_of(within, size.height) * line,
             detail + (size.shared ? within : row) * 2 * line, mixed, y + row * 2 * line);
    }
  });
}

template void upsample_and_add(const Upsampling&, const float*, const float*, float*, const Parallel&);
template void upsample_and_add(const Upsampling&, const BFloat16*, const BFloat16*, BFloat16*, const Parallel&);

}  // namespace stm_fast
