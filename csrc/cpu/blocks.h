// The sizes of the blocks that the engine works in.
#pragma once

#include <algorithm>

#include "stm_fast/matrix.h"
#include "stm_fast/tile_kernels.h"

namespace stm_fast {

// Memory rows of a block: its packed values stay in the second-level cache while the queries of a block pass over them.
inline constexpr Index rows_per_block = 192;
// Queries of a block, about: their sums stay in the second-level cache too.
inline constexpr Index queries_per_block = 192;

// The queries of one object in panels of SIMD lanes, the panels in blocks of nearly equal size.
struct QueryBlocks {
  template <class Element>
  QueryBlocks(Index queries, const ForwardKernels<Element>& kernels)
      : queries(queries),
        lanes(kernels.lanes),
        panels(divide_up(queries, lanes)),
        count(divide_up(panels, std::max<Index>(1, queries_per_block / lanes))) {}
  // In `most` blocks, where there are so many panels.
  QueryBlocks(Index queries, Index lanes, Index most)
      : queries(queries), lanes(lanes), panels(divide_up(queries, lanes)), count(std::min(panels, most)) {}

  Index padded_queries() const { return panels * lanes; }
  Index first_panel(Index block) const { return block * panels / count; }
  Index panels_in(Index block) const { return first_panel(block + 1) - first_panel(block); }
  Index largest_block() const { return count == 0 ? 0 : divide_up(panels, count); }
  // queries of a panel, of a block, that exist
  Index queries_in_panel(Index panel) const { return std::min(lanes, queries - panel * lanes); }
  Index queries_in_block(Index block) const {
    return std::min(panels_in(block) * lanes, queries - first_panel(block) * lanes);
  }

  const Index queries;
  const Index lanes;
  const Index panels;
  const Index count;
};

}  // namespace stm_fast
