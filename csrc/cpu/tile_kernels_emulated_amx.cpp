// The kernels for AMX with emulated tiles, on any machine, for tests; not in wheels for an index.
#if !defined(STM_FAST_RELEASE)

// every function with vectors of this size is inlined, so no calling convention can differ
#pragma GCC diagnostic ignored "-Wpsabi"

#include <cstring>

#include "emulated_products.h"
#include "stm_fast/matrix.h"

#define STM_FAST_ISA emulated_amx
#define STM_FAST_TARGET
#define STM_FAST_VECTOR_BYTES 64
#define STM_FAST_GROUP_ROWS 16
#define STM_FAST_VECTORS 2
#define STM_FAST_TILE_CONFIGURE(config) emulated::configure(*(config))
#define STM_FAST_TILE_RELEASE() emulated::release()
#define STM_FAST_TILE_ZERO(tile) emulated::tiles[tile] = {}
#define STM_FAST_TILE_LOAD(tile, from, stride) emulated::load_tile(tile, from, stride)
#define STM_FAST_TILE_STORE(tile, to, stride) emulated::store_tile(tile, to, stride)
#define STM_FAST_TILE_DOT_PAIRS(sum, left, right) emulated::multiply_pairs(sum, left, right)
#define STM_FAST_TILE_DOT_QUADS(sum, left, right) emulated::multiply_quads(sum, left, right)

namespace stm_fast::emulated {

struct Tile {
  std::uint32_t elements[16][16];
};

// the registers of a thread; not configured, an access ends the process, as the instruction does
inline thread_local Tile tiles[8];
inline thread_local bool configured = false;

inline void check(bool expected) {
  if (configured != expected) {
    __builtin_trap();
  }
}
template <class Config>
void configure(const Config& config) {
  check(false);
  for (int tile = 0; tile < 8; ++tile) {
    if (config.palette != 1 || config.rows[tile] != 16 || config.row_bytes[tile] != 64) {
      __builtin_trap();
    }
  }
  configured = true;
}
inline void release() {
  check(true);
  configured = false;
}
inline void load_tile(int tile, const void* from, Index stride) {
  check(true);
  for (Index row = 0; row < 16; ++row) {
    std::memcpy(tiles[tile].elements[row], static_cast<const char*>(from) + row * stride, 64);
  }
}
inline void store_tile(int tile, void* to, Index stride) {
  check(true);
  for (Index row = 0; row < 16; ++row) {
    std::memcpy(static_cast<char*>(to) + row * stride, tiles[tile].elements[row], 64);
  }
}

// tdpbf16ps: in each step of the depth a row of B is multiplied with one pair of each row of A. The numbers of a pair
// have sums of their own, which are added at the end.
inline void multiply_pairs(int sum, int left, int right) {
  check(true);
  for (Index row = 0; row < 16; ++row) {
    Floats lower = {}, upper = {};
    for (Index k = 0; k < 16; ++k) {
      Bits others;
      std::memcpy(&others, tiles[right].elements[k], sizeof(others));
      const Bits pair = tiles[left].elements[row][k] - Bits{};
      upper = multiply_add_half(upper, pair, others);
      lower = multiply_add_half(lower, pair << 16, others << 16);
    }
    Floats before;
    std::memcpy(&before, tiles[sum].elements[row], sizeof(before));
    const Floats after = before + (lower + upper);
    std::memcpy(tiles[sum].elements[row], &after, sizeof(after));
  }
}

// tdpbsud: the same with four products of bytes, those of A with a sign, and exact sums.
inline void multiply_quads(int sum, int left, int right) {
  check(true);
  for (Index row = 0; row < 16; ++row) {
    Integers total;
    std::memcpy(&total, tiles[sum].elements[row], sizeof(total));
    for (Index k = 0; k < 16; ++k) {
      Bits others;
      std::memcpy(&others, tiles[right].elements[k], sizeof(others));
      total = multiply_add_quads(total, tiles[left].elements[row][k] - Bits{}, others);
    }
    std::memcpy(tiles[sum].elements[row], &total, sizeof(total));
  }
}

}  // namespace stm_fast::emulated

#include "tile_kernels_source.h"
// which need the macros of the first
#include "quantized_kernels_source.h"
// which needs the second
#include "amx_kernels_source.h"

#endif
