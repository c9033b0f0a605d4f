#include "stm_fast/winograd.h"

#include <algorithm>
#include <cstring>

#include "clones.h"

#define STM_FAST_INLINE inline __attribute__((always_inline))

namespace stm_fast {
namespace {

constexpr Index reach = winograd_tile + 2;  // inputs of a tile, in each direction

typedef float Lanes __attribute__((vector_size(winograd_lanes * sizeof(float))));

STM_FAST_INLINE void load(const float* from, Lanes& to) { std::memcpy(&to, from, sizeof(Lanes)); }
STM_FAST_INLINE void store(const Lanes& from, float* to) { std::memcpy(to, &from, sizeof(Lanes)); }

// B^T d of the paper's equation 24, for six vectors `stride` apart; in place.
STM_FAST_INLINE void transform_input(Lanes* d, Index stride) {
  const Lanes d0 = d[0], d1 = d[stride], d2 = d[2 * stride], d3 = d[3 * stride], d4 = d[4 * stride], d5 = d[5 * stride];
  const Lanes even = d4 - 4.0f * d2, odd = d3 - 4.0f * d1;
  const Lanes inner_even = d4 - d2, inner_odd = 2.0f * (d3 - d1);
  d[0] = 4.0f * d0 - 5.0f * d2 + d4;
  d[stride] = even + odd;
  d[2 * stride] = even - odd;
  d[3 * stride] = inner_even + inner_odd;
  d[4 * stride] = inner_even - inner_odd;
  d[5 * stride] = 4.0f * d1 - 5.0f * d3 + d5;
}

// A^T m: six vectors become four, in place.
STM_FAST_INLINE void transform_output(Lanes* m, Index stride) {
  const Lanes m0 = m[0], m1 = m[stride], m2 = m[2 * stride], m3 = m[3 * stride], m4 = m[4 * stride], m5 = m[5 * stride];
  const Lanes sum = m1 + m2, difference = m1 - m2, outer_sum = m3 + m4, outer_difference = m3 - m4;
  m[0] = m0 + sum + outer_sum;
  m[stride] = difference + 2.0f * outer_difference;
  m[2 * stride] = sum + 4.0f * outer_sum;
  m[3 * stride] = difference + 8.0f * outer_difference + m5;
}

}  // namespace

STM_FAST_CLONES
void winograd_input(const WinogradStrip& strip, Index row, const float* picture, bool relu, float* points) {
  const Index across = strip.tiles_across(), channels = strip.channels;
  const Index point_stride = strip.rows * across * channels;
  const Index top = (strip.first_row + row) * winograd_tile - 1;
  const Lanes zero = {};
  for (Index tile = 0; tile < across; ++tile) {
    const Index left = tile * winograd_tile - 1;
    float* target = points + (row * across + tile) * channels;
    for (Index c = 0; c < channels; c += winograd_lanes) {
      Lanes d[reach * reach];
      for (Index i = 0; i < reach; ++i) {
        const bool inside = top + i >= 0 && top + i < strip.height;
        const float* line = picture + ((top + i) * strip.width + left) * channels + c;
        for (Index j = 0; j < reach; ++j) {
          Lanes& value = d[i * reach + j];
          value = zero;
          if (inside && left + j >= 0 && left + j < strip.width) {
            load(line + j * channels, value);
            if (relu) {
              value = value > zero ? value : zero;
            }
          }
        }
      }
      for (Index j = 0; j < reach; ++j) {
        transform_input(d + j, reach);
      }
      for (Index i = 0; i < reach; ++i) {
        transform_input(d + i * reach, 1);
      }
      for (Index point = 0; point < winograd_points; ++point) {
        store(d[point], target + point * point_stride + c);
      }
    }
  }
}

STM_FAST_CLONES
void winograd_output(const WinogradStrip& strip, Index row, const float* points, const float* bias,
                     const float* residual, float* picture) {
  const Index across = strip.tiles_across(), channels = strip.channels;
  const Index point_stride = strip.rows * across * channels;
  const Index top = (strip.first_row + row) * winograd_tile;
  const Index high = std::min(winograd_tile, strip.height - top);
  for (Index tile = 0; tile < across; ++tile) {
    const Index left = tile * winograd_tile;
    const Index wide = std::min(winograd_tile, strip.width - left);
    const float* source = points + (row * across + tile) * channels;
    for (Index c = 0; c < channels; c += winograd_lanes) {
      Lanes m[winograd_points], shift;
      load(bias + c, shift);
      for (Index point = 0; point < winograd_points; ++point) {
        load(source + point * point_stride + c, m[point]);
      }
      for (Index j = 0; j < reach; ++j) {
        transform_output(m + j, reach);
      }
      for (Index i = 0; i < high; ++i) {
        transform_output(m + i * reach, 1);
        const Index line = ((top + i) * strip.width + left) * channels + c;
        for (Index j = 0; j < wide; ++j) {
          Lanes value = m[i * reach + j] + shift;
          if (residual != nullptr) {
            Lanes added;
            load(residual + line + j * channels, added);
            value += added;
          }
          store(value, picture + line + j * channels);
        }
      }
    }
  }
}

}  // namespace stm_fast
