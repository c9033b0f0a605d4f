// The sizes of the blocks that the engine works in.
#pragma once

#include <algorithm>

#include "stm_fast/matrix.h"
#include "stm_fast/tile_kernels.h"

namespace stm_fast {

// Memory rows of a block: its packed values stay in the second-level cache while the queries of a block pass over them.
inline constexpr Index rows_per_block = 128;
// Queries of a block, about: their sums stay in the second-level cache too.
inline constexpr Index queries_per_block = 144;

// The queries of one object in panels of SIMD lanes, the panels in blocks of nearly equal size.
struct QueryBlocks {
  Index queries;
  Index lanes;
  Index panels;
  Index count;  // at least 1, so that no code divides by 0

  template <class T>
  QueryBlocks(Index queries, const TileKernels<T>& kernels)
      : queries(queries),
        lanes(kernels.lanes),
        panels(divide_up(queries, lanes)),
        count(std::max<Index>(1, divide_up(panels * lanes, std::max(lanes, queries_per_block)))) {}

  Index first_panel(Index block) const { return block * panels / count; }
  Index panels_in(Index block) const { return first_panel(block + 1) - first_panel(block); }
  Index largest_block() const { return divide_up(panels, count); }
  // queries of a panel that exist
  Index queries_in(Index panel) const { return std::min(lanes, queries - panel * lanes); }
};

}  // namespace stm_fast
