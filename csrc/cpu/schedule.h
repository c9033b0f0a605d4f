// The forward pass, divided into one equal share per thread.
//
// A unit of work is one block of queries against one block of memory rows. The units of one block of queries (of one
// affinity) form a group and are consecutive; a share is a run of units, so it splits at most two groups. That keeps
// every thread busy for many objects, for many queries and, with few queries, for a long memory.
#pragma once

#include <algorithm>
#include <vector>

#include "stm_fast/matrix.h"

namespace stm_fast {

// A piece of one group: row blocks [begin, end) of `row_blocks`.
struct Segment {
  Index affinity;
  Index query_block;
  Index begin;
  Index end;
  Index row_blocks;

  bool whole() const { return begin == 0 && end == row_blocks; }
  bool starts_group() const { return begin == 0; }
  bool ends_group() const { return end == row_blocks; }
};

class Schedule {
 public:
  // `row_blocks[a]` of affinity a, at least 1 each: an object without rows has an output too.
  Schedule(std::vector<Index> row_blocks, Index query_blocks, Index threads)
      : row_blocks_(std::move(row_blocks)), query_blocks_(query_blocks), first_unit_{0} {
    for (const Index blocks : row_blocks_) {
      first_unit_.push_back(first_unit_.back() + blocks * query_blocks_);
    }
    const Index units = first_unit_.back(), shares = std::min(threads, units);
    for (Index share = 0; share < shares; ++share) {
      shares_.push_back(segments_between(units * share / shares, units * (share + 1) / shares));
    }
  }

  Index shares() const { return std::ssize(shares_); }

  // The segments of a share, in order.
  const std::vector<Segment>& segments(Index share) const { return shares_[share]; }

 private:
  std::vector<Segment> segments_between(Index unit, Index end) const {
    std::vector<Segment> result;
    while (unit < end) {
      Segment segment = segment_at(unit);
      segment.end = std::min(segment.row_blocks, segment.begin + end - unit);
      unit += segment.end - segment.begin;
      result.push_back(segment);
    }
    return result;
  }

  Segment segment_at(Index unit) const {
    const Index affinity = std::upper_bound(first_unit_.begin(), first_unit_.end(), unit) - first_unit_.begin() - 1;
    const Index blocks = row_blocks_[affinity];
    const Index within = unit - first_unit_[affinity];
    return {affinity, within / blocks, within % blocks, blocks, blocks};
  }

  std::vector<Index> row_blocks_;
  Index query_blocks_;
  std::vector<Index> first_unit_;
  std::vector<std::vector<Segment>> shares_;
};

}  // namespace stm_fast
