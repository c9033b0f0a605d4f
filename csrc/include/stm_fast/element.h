// What packed panels and the products of the tile kernels are made of.
#pragma once

#include "stm_fast/matrix.h"
#include "stm_fast/number.h"

namespace stm_fast {

// Two numbers side by side in the depth of a product, the first in the lower half.
struct BFloat16Pair {
  std::uint32_t bits;
};

// Float or double, each one number; or BFloat16Pair, whose products are summed in float.
template <class Element>
struct ElementTraits {
  using Sum = Element;
  using Lane = Element;  // what vectors of them hold
  static constexpr Index numbers = 1;
};
template <>
struct ElementTraits<BFloat16Pair> {
  using Sum = float;
  using Lane = std::uint32_t;
  static constexpr Index numbers = 2;
};

template <class Element>
using Sum = typename ElementTraits<Element>::Sum;

// So many numbers in elements.
template <class Element>
inline Index depth_of(Index numbers) {
  return divide_up(numbers, ElementTraits<Element>::numbers);
}

}  // namespace stm_fast
