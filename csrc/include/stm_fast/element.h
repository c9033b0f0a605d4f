// The elements of packed panels and of the products of the tile kernels.
#pragma once

#include "stm_fast/matrix.h"
#include "stm_fast/number.h"

namespace stm_fast {

// Two numbers adjacent in the depth of a product, the first in the lower half.
struct BFloat16Pair {
  std::uint32_t bits;
};

// Four integers of 8 bits adjacent in the depth of a product, the first in the lowest byte.
struct ByteQuad {
  std::uint32_t bits;
};

// Float or double, each one number; BFloat16Pair, whose products are summed in float; or ByteQuad, whose products are
// summed exactly in 32 bits, and converted to float with their scale.
template <class Element>
struct ElementTraits {
  using Sum = Element;
  using Register = Element;  // the type of sums that have not left the registers
  using Lane = Element;      // the lane type of their vectors
  static constexpr Index numbers = 1;
};
template <>
struct ElementTraits<BFloat16Pair> {
  using Sum = float;
  using Register = float;
  using Lane = std::uint32_t;
  static constexpr Index numbers = 2;
};
template <>
struct ElementTraits<ByteQuad> {
  using Sum = float;
  using Register = std::int32_t;
  using Lane = std::uint32_t;
  static constexpr Index numbers = 4;
};

template <class Element>
using Sum = typename ElementTraits<Element>::Sum;
template <class Element>
using Register = typename ElementTraits<Element>::Register;

// The number of elements that hold this many numbers.
template <class Element>
inline Index depth_of(Index numbers) {
  return divide_up(numbers, ElementTraits<Element>::numbers);
}

}  // namespace stm_fast
