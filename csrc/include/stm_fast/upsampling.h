// A map of twice the resolution added to another one, as in the decoder.
#pragma once

#include "stm_fast/memory_read.h"

namespace stm_fast {

// Sizes of x [batch, height, width, channels], channels-last.
struct Upsampling {
  Index batch, height, width, channels;
  bool shared;  // one detail for all images
};

// y = bilinear(x) + detail, rounded once. Bilinear as PyTorch's interpolate without align_corners; detail [1 or batch,
// 2 height, 2 width, channels], y [batch, 2 height, 2 width, channels].
template <class Stored>
void upsample_and_add(const Upsampling& size, const Stored* x, const Stored* detail, Stored* y,
                      const Parallel& parallel);

}  // namespace stm_fast
