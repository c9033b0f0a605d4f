// The number types of the engine: stored in tensors, and for accumulation.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

namespace stm_fast {

// bfloat16: the upper half of a float32.
struct BFloat16 {
  std::uint16_t bits;
};

// IEEE binary16.
struct Half {
  std::uint16_t bits;
};

// Numbers of a quantized memory, before scaling: integers, and floats with 4 bits of exponent and 3 of mantissa
// ("e4m3fn": no infinity, and only magnitude 0x7f is NaN).
struct Int8 {
  std::int8_t bits;
};
struct Float8 {
  std::uint8_t bits;
};

inline float widen(BFloat16 x) { return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16); }

// How the bits of a narrower float become those of a float32.
struct SmallFloat {
  std::uint32_t sign;           // its sign bit
  std::uint32_t shift;          // of exponent and mantissa
  std::uint32_t sign_shift;     // of the sign
  float rebias;                 // 2 to the difference of the exponent biases
  std::uint32_t first_special;  // the first shifted magnitude that is infinite or NaN
};
template <class Small>
inline constexpr SmallFloat small_float = {0x8000, 13, 16, 0x1p112f, 0x0f800000};
template <>
inline constexpr SmallFloat small_float<Float8> = {0x80, 20, 24, 0x1p120f, 0x07f00000};

// The exponent is rebiased by an exact product, which also converts denormal numbers; infinity and NaN get the largest
// exponent instead.
template <class Small>
inline float widen_small(Small x) {
  constexpr SmallFloat format = small_float<Small>;
  const std::uint32_t magnitude = (x.bits & (format.sign - 1)) << format.shift;
  const float value = std::bit_cast<float>(magnitude) * format.rebias;
  const std::uint32_t special = magnitude >= format.first_special ? 0x7f800000u : 0u;
  const std::uint32_t sign = (x.bits & format.sign) << format.sign_shift;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) | special | sign);
}
inline float widen(Half x) { return widen_small(x); }
inline float widen(Float8 x) { return widen_small(x); }
inline float widen(Int8 x) { return static_cast<float>(x.bits); }
inline float widen(float x) { return x; }
inline double widen(double x) { return x; }

template <class Stored>
using Accumulator = decltype(widen(Stored{}));

template <class Stored>
inline constexpr bool quantized = std::is_same_v<Stored, Int8> || std::is_same_v<Stored, Float8>;

// The type of queries and results if memory rows are Stored.
template <class Stored>
using Dense = std::conditional_t<quantized<Stored>, Accumulator<Stored>, Stored>;

template <class Stored>
inline Stored narrow(Accumulator<Stored> x) {
  return x;
}

// Both round to nearest, ties to even; NaN stays NaN.
template <>
inline BFloat16 narrow<BFloat16>(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if (std::isnan(x)) {
    return {static_cast<std::uint16_t>((bits >> 16) | 0x40)};
  }
  return {static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

template <>
inline Half narrow<Half>(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000);
  const float magnitude = std::fabs(x);
  std::uint32_t half;
  if (std::isnan(x)) {
    half = 0x7e00;
  } else if (magnitude >= 65520.0f) {
    half = 0x7c00;
  } else if (magnitude < 0x1p-14f) {
    // adding 1/2 rounds to the spacing of the denormal numbers and leaves the result in the low bits
    half = std::bit_cast<std::uint32_t>(magnitude + 0.5f) - 0x3f000000u;
  } else {
    const std::uint32_t rounded = (bits & 0x7fffffff) + 0xfff + ((bits >> 13) & 1);
    half = (rounded - 0x38000000u) >> 13;
  }
  return {static_cast<std::uint16_t>(sign | half)};
}

}  // namespace stm_fast
