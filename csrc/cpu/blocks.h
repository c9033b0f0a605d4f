// Block sizes of the engine.
#pragma once

#include <algorithm>

#include "stm_fast/matrix.h"
#include "stm_fast/tile_kernels.h"

namespace stm_fast {

// Memory rows of a block: its packed values stay in the L2 cache while the queries of a block pass over them.
inline constexpr Index rows_per_block = 192;
// Queries of a block, approximately: their sums stay in the L2 cache too.
inline constexpr Index queries_per_block = 192;

// The rows of a memory in blocks that do not straddle slots: each slot in blocks of nearly equal size.
struct SlotBlocks {
  SlotBlocks(Index slot_rows, Index most_rows)
      : slot_rows(slot_rows),
        rows(round_up(divide_up(slot_rows, divide_up(slot_rows, most_rows)), 4)),
        in_slot(divide_up(slot_rows, rows)) {}

  // How many blocks hold the first rows of the memory.
  Index count(Index first_rows) const {
    return first_rows / slot_rows * in_slot + divide_up(first_rows % slot_rows, rows);
  }
  Index slot_of(Index block) const { return block / in_slot; }
  Index first_row(Index block) const { return slot_of(block) * slot_rows + block % in_slot * rows; }
  // The rows of a block, of the `valid` first rows of the memory.
  Index rows_in(Index block, Index valid) const {
    const Index end = std::min(valid, (slot_of(block) + 1) * slot_rows);
    return std::clamp<Index>(end - first_row(block), 0, rows);
  }

  const Index slot_rows;
  const Index rows;  // of a block, at most
  const Index in_slot;
};

// The queries of one object in panels of SIMD lanes, the panels in blocks of nearly equal size.
struct QueryBlocks {
  template <class Element>
  QueryBlocks(Index queries, const ForwardKernels<Element>& kernels)
      : queries(queries),
        lanes(kernels.lanes),
        panels(divide_up(queries, lanes)),
        count(divide_up(panels, std::max<Index>(1, queries_per_block / lanes))) {}
  // In `most` blocks, if there are that many panels.
  QueryBlocks(Index queries, Index lanes, Index most)
      : queries(queries), lanes(lanes), panels(divide_up(queries, lanes)), count(std::min(panels, most)) {}

  Index padded_queries() const { return panels * lanes; }
  Index first_panel(Index block) const { return block * panels / count; }
  Index panels_in(Index block) const { return first_panel(block + 1) - first_panel(block); }
  Index largest_block() const { return count == 0 ? 0 : divide_up(panels, count); }
  // valid queries of a panel, of a block
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
