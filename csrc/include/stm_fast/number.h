// The number types of the engine: what tensors store and what sums are accumulated in.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace stm_fast {

// bfloat16: the upper half of a float32.
struct BFloat16 {
  std::uint16_t bits;
};

inline float widen(BFloat16 x) { return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16); }
inline float widen(float x) { return x; }
inline double widen(double x) { return x; }

template <class Stored>
using Accumulator = decltype(widen(Stored{}));

template <class Stored>
inline Stored narrow(Accumulator<Stored> x) {
  return x;
}

// Rounds to nearest, ties to even; NaN stays NaN.
template <>
inline BFloat16 narrow<BFloat16>(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if (std::isnan(x)) {
    return {static_cast<std::uint16_t>((bits >> 16) | 0x40)};
  }
  return {static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

}  // namespace stm_fast
