// From the decoder's logits to probabilities and labels, a row of pixels at a time.
#pragma once

#include <cstdint>

#include "stm_fast/matrix.h"
#include "stm_fast/number.h"

namespace stm_fast {

inline constexpr Index logits_stride = 4;  // pixels of a frame per pixel of the logits, in each direction

// Logits [O, C, h, w] of background and object, C = 2, of which only the difference matters; or that difference, C = 1.
template <class Stored>
struct ObjectLogits {
  const Stored* data;
  Index objects, channels, height, width;
  Index object_stride, channel_stride, row_stride, column_stride;
};

// The crop of the resized logits, 4h x 4w.
struct Crop {
  Index top, left, height, width;
};

// The number of floats of scratch that `object_probabilities` needs.
inline Index probabilities_buffer(Index objects, Index width) { return 1 + (objects + 3) * logits_stride * width; }

// One row of the crop: probabilities [1 + O, H, W] in float. Equivalent to bilinear interpolation, a sigmoid per
// object, soft aggregation with probabilities clamped to epsilon .. 1 - epsilon, and a softmax over background and
// objects.
template <class Stored>
void object_probabilities(const ObjectLogits<Stored>& logits, const Crop& crop, float epsilon, Index row, float* buffer,
                          float* probabilities);

// The id of the largest of [channels, pixels], planes `stride` apart, for pixels [first, last): the first of
// equal ones; NaN is larger than any number.
void most_likely(const float* probabilities, Index channels, Index stride, const std::uint8_t* ids, Index first,
                 Index last, std::uint8_t* labels);

}  // namespace stm_fast
