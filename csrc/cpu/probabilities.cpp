#include "stm_fast/probabilities.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "clones.h"

// Plain loops over the pixels of a row, whose arrays stay in the L1 cache; the compiler vectorizes them.

namespace stm_fast {
namespace {

constexpr float phase_weights[logits_stride] = {0.375f, 0.125f, 0.875f, 0.625f};  // of the first of two neighbors

// e^x for |x| < 87, to a relative error of 1e-7: as in tile_kernels_source.h, for one number. NaN stays NaN.
inline float exp_of(float x) {
  const float rounder = 12582912.0f;  // adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits
  const float shifted = x * 1.44269504f + rounder;
  const float n = shifted - rounder;
  const float r = x - n * 0.693359375f - n * -2.12194440e-4f;
  float p = 1.381468119e-3f;
  p = p * r + 8.368749049e-3f;
  p = p * r + 4.166838481e-2f;
  p = p * r + 1.666652036e-1f;
  p = p * r + 4.999999348e-1f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(p) + (std::bit_cast<std::uint32_t>(shifted) << 23));
}

// NaN stays NaN.
inline float at_least(float x, float low) { return x < low ? low : x; }
inline float at_most(float x, float high) { return x > high ? high : x; }
inline float bounded(float x) { return at_most(at_least(x, -40.0f), 40.0f); }

// One row of logits, resized vertically: [w], with the outermost repeated on both sides.
template <class Stored>
void blend_rows(const ObjectLogits<Stored>& logits, Index object, Index row, float* blended) {
  const Index phase = row % logits_stride;
  const Index above = row / logits_stride - (phase < logits_stride / 2 ? 1 : 0);
  const float weight = phase_weights[phase];
  const Stored* const base = logits.data + object * logits.object_stride;
  const Stored* const first = base + std::max(above, Index{0}) * logits.row_stride;
  const Stored* const second = base + std::min(above + 1, logits.height - 1) * logits.row_stride;
  const Index foreground = (logits.channels - 1) * logits.channel_stride;
  for (Index x = 0; x < logits.width; ++x) {
    const Index at = x * logits.column_stride;
    float upper = widen(first[at + foreground]), lower = widen(second[at + foreground]);
    if (logits.channels == 2) {
      upper -= widen(first[at]);
      lower -= widen(second[at]);
    }
    blended[x] = weight * upper + (1 - weight) * lower;
  }
  blended[-1] = blended[0];
  blended[logits.width] = blended[logits.width - 1];
}

// [w] to [4 w], clamped to the range of the odds. Clamping is done here because GCC turns clamping the argument of
// exp_of in the same loop into branches instead of vectors.
STM_FAST_CLONES
void widen_row(const float* __restrict blended, Index width, float* __restrict row) {
  for (Index x = 0; x < width; ++x) {
    const float before = blended[x - 1], here = blended[x], after = blended[x + 1];
    float* const to = row + x * logits_stride;
    to[0] = bounded(phase_weights[0] * before + (1 - phase_weights[0]) * here);
    to[1] = bounded(phase_weights[1] * before + (1 - phase_weights[1]) * here);
    to[2] = bounded(phase_weights[2] * here + (1 - phase_weights[2]) * after);
    to[3] = bounded(phase_weights[3] * here + (1 - phase_weights[3]) * after);
  }
}

// The odds p / (1 - p) of an object from its logits, in place; p is their sigmoid. `others` are the odds that any
// object is present: the product of 1 + odds, minus one, computed without that subtraction. `total` is the sum of the
// clamped odds.
STM_FAST_CLONES
void add_object(float* __restrict odds, float* __restrict others, float* __restrict total, Index width, float least) {
  const float most = 1 / least;
  for (Index x = 0; x < width; ++x) {
    const float own = exp_of(odds[x]);
    others[x] = at_most(others[x] * (1 + own) + own, most);  // never decreases: a value at the bound stays there
    odds[x] = at_most(at_least(own, least), most);
    total[x] += odds[x];
  }
}

// The background's odds are 1 / others: probabilities are 1 : others * odds, over their sum. `others` becomes the
// factor of the odds.
STM_FAST_CLONES
void share_out(float* __restrict others, const float* __restrict total, Index width, float least,
               float* __restrict background) {
  for (Index x = 0; x < width; ++x) {
    const float any = at_least(others[x], least);
    background[x] = 1 / (1 + any * total[x]);
    others[x] = any * background[x];
  }
}

STM_FAST_CLONES
void multiply(const float* __restrict left, const float* __restrict right, Index width, float* __restrict product) {
  for (Index x = 0; x < width; ++x) {
    product[x] = left[x] * right[x];
  }
}

}  // namespace

template <class Stored>
void object_probabilities(const ObjectLogits<Stored>& logits, const Crop& crop, float epsilon, Index row, float* buffer,
                          float* probabilities) {
  const Index full_width = logits_stride * logits.width, plane = crop.height * crop.width;
  float *const blended = buffer + 1, *const others = blended + full_width, *const total = others + full_width;
  float* const odds = total + full_width;  // [O, 4 w]
  const float least = epsilon / (1 - epsilon);
  std::fill_n(others, 2 * full_width, 0.0f);
  for (Index object = 0; object < logits.objects; ++object) {
    float* const own = odds + object * full_width;
    blend_rows(logits, object, crop.top + row, blended);
    widen_row(blended, logits.width, own);
    add_object(own + crop.left, others, total, crop.width, least);
  }
  float* const background = probabilities + row * crop.width;
  share_out(others, total, crop.width, least, background);
  for (Index object = 0; object < logits.objects; ++object) {
    multiply(odds + object * full_width + crop.left, others, crop.width, background + (object + 1) * plane);
  }
}

template void object_probabilities(const ObjectLogits<float>&, const Crop&, float, Index, float*, float*);
template void object_probabilities(const ObjectLogits<BFloat16>&, const Crop&, float, Index, float*, float*);
template void object_probabilities(const ObjectLogits<Half>&, const Crop&, float, Index, float*, float*);

STM_FAST_CLONES
void most_likely(const float* probabilities, Index channels, Index stride, const std::uint8_t* ids, Index first,
                 Index last, std::uint8_t* labels) {
  constexpr Index at_a_time = 512;
  float largest[at_a_time];
  std::int32_t found[at_a_time];
  for (; first < last; first += at_a_time) {
    const Index count = std::min(at_a_time, last - first);
    std::copy_n(probabilities + first, count, largest);
    std::fill_n(found, count, ids[0]);
    for (Index channel = 1; channel < channels; ++channel) {
      const float* const plane = probabilities + channel * stride + first;
      const std::int32_t id = ids[channel];
      for (Index i = 0; i < count; ++i) {
        const bool larger = !(plane[i] <= largest[i]) & (largest[i] == largest[i]);
        found[i] = larger ? id : found[i];
        largest[i] = larger ? plane[i] : largest[i];
      }
    }
    for (Index i = 0; i < count; ++i) {
      labels[first + i] = static_cast<std::uint8_t>(found[i]);
    }
  }
}

}  // namespace stm_fast
