// The arithmetic of the instructions that multiply small numbers, on any machine.
#pragma once

#include <cstdint>

namespace stm_fast::emulated {

typedef float Floats __attribute__((vector_size(64), aligned(4), may_alias));
typedef std::int32_t Integers __attribute__((vector_size(64), aligned(4), may_alias));
typedef std::uint32_t Bits __attribute__((vector_size(64), aligned(4), may_alias));

// Denormal numbers are treated as 0.
inline __attribute__((always_inline)) Floats flushed(Bits x) {
  return reinterpret_cast<Floats>((x & 0x7f800000u) != 0u ? x : x & 0x80000000u);
}

// sum + left * right for the bfloat16 numbers in the upper halves: products are exact, the sum is rounded once.
inline __attribute__((always_inline)) Floats multiply_add_half(Floats sum, Bits left, Bits right) {
  const Floats exact = flushed(left & 0xffff0000u) * flushed(right & 0xffff0000u);
  return flushed(reinterpret_cast<Bits>(flushed(reinterpret_cast<Bits>(sum)) + exact));
}

// The products of the bytes that are `shift` bits below the highest: left with a sign, right without.
inline __attribute__((always_inline)) Integers product_of_bytes(Bits left, Bits right, int shift) {
  return (reinterpret_cast<Integers>(left << shift) >> 24) * reinterpret_cast<Integers>(right << shift >> 24);
}

// sum + the four products of bytes.
inline __attribute__((always_inline)) Integers multiply_add_quads(Integers sum, Bits left, Bits right) {
  return sum + product_of_bytes(left, right, 24) + product_of_bytes(left, right, 16) +
         product_of_bytes(left, right, 8) + product_of_bytes(left, right, 0);
}

}  // namespace stm_fast::emulated
