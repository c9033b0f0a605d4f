// Work distributed over threads, with scratch memory allocated before they start.
#pragma once

#include "blocks.h"
#include "schedule.h"
#include "stm_fast/memory_read.h"
#include "stm_fast/scratch.h"

namespace stm_fast {

// The size in bytes of a piece of scratch memory, a struct constructed from (owner, carver).
template <class Piece, class Owner>
Index bytes_of(const Owner& owner) {
  Carver carver(nullptr);
  Piece(owner, carver);
  return carver.used();
}

// task(item, workspace) for every item; the items of a thread are consecutive and share its workspace.
template <class Workspace, class Owner, class Task>
void run_items(const Owner& owner, Index items, const Parallel& parallel, const Task& task) {
  const Index bytes = bytes_of<Workspace>(owner), shares = std::min(parallel.threads, items);
  const Scratch scratch(shares * bytes);
  parallel.run(shares, [&](Index share) {
    Carver carver(scratch.get() + share * bytes);
    const Workspace workspace(owner, carver);
    for (Index item = items * share / shares; item < items * (share + 1) / shares; ++item) {
      task(item, workspace);
    }
  });
}

// One pass of all queries over the valid memory rows. A Pass has
//   void read(segment, workspace, partial)     the rows of a segment, read by its queries
//   void add(segment, part, whole)             merges the results of two segments of one group
//   void write(segment, workspace, partial)    a finished group
//   Workspace, Partial                         constructed from (pass, carver)
template <class Pass>
void run_pass(const Pass& pass, const Schedule& schedule, const Parallel& parallel) {
  using Workspace = typename Pass::Workspace;
  using Partial = typename Pass::Partial;
  const Index partial_bytes = bytes_of<Partial>(pass);
  // a share leaves at most two groups unfinished, the first and the last; complete ones before the last reuse its place
  const Index share_bytes = bytes_of<Workspace>(pass) + 2 * partial_bytes;
  const Scratch scratch(schedule.shares() * share_bytes);
  const auto partial = [&](Index share, Index which) {
    Carver carver(scratch.get() + share * share_bytes + which * partial_bytes);
    return Partial(pass, carver);
  };
  const auto unfinished = [&](Index share, bool first) { return partial(share, first ? 0 : 1); };

  parallel.run(schedule.shares(), [&](Index share) {
    Carver carver(scratch.get() + share * share_bytes + 2 * partial_bytes);
    const Workspace workspace(pass, carver);
    for (const Segment& segment : schedule.segments(share)) {
      const bool first = &segment == &schedule.segments(share).front();
      const Partial result = segment.whole() ? partial(share, 1) : unfinished(share, first);
      pass.read(segment, workspace, result);
      if (segment.whole()) {
        pass.write(segment, workspace, result);
      }
    }
  });
  // the share in which a group starts finishes it
  parallel.run(schedule.shares(), [&](Index share) {
    const Segment& group = schedule.segments(share).back();
    if (!group.starts_group() || group.ends_group()) {
      return;
    }
    const Partial whole = unfinished(share, schedule.segments(share).size() == 1);
    for (Index next = share + 1;; ++next) {
      pass.add(group, unfinished(next, true), whole);
      if (schedule.segments(next).front().ends_group()) {
        break;
      }
    }
    Carver carver(scratch.get() + share * share_bytes + 2 * partial_bytes);
    pass.write(group, Workspace(pass, carver), whole);
  });
}

// The objects in runs for which scores are computed once: single objects, or up to `most` together if the problem has a
// shared affinity.
struct Affinities {
  template <class Stored>
  Affinities(const ReadProblem<Stored>& problem, Index most)
      : objects(problem.objects), count(divide_up(objects, problem.shares_affinity() ? std::max<Index>(1, most) : 1)) {}

  Index first_object(Index affinity) const { return affinity * objects / count; }
  Index objects_of(Index affinity) const { return first_object(affinity + 1) - first_object(affinity); }
  Index most_objects() const { return count == 0 ? 0 : divide_up(objects, count); }

  const Index objects;
  const Index count;
};

// The schedule of a pass: blocks of valid rows, for each affinity. blocks_of(rows): how many blocks hold the first
// rows.
template <class Stored, class BlocksOf>
Schedule schedule_of(const ReadProblem<Stored>& problem, const Affinities& affinities, Index query_blocks,
                     Index threads, const BlocksOf& blocks_of) {
  std::vector<Index> row_blocks;
  for (Index affinity = 0; affinity < affinities.count; ++affinity) {
    const Index rows = problem.rows_of(affinities.first_object(affinity));
    row_blocks.push_back(std::max<Index>(1, blocks_of(rows)));
  }
  return Schedule(std::move(row_blocks), query_blocks, threads);
}
template <class Stored>
Schedule schedule_of(const ReadProblem<Stored>& problem, const Affinities& affinities, Index query_blocks,
                     Index threads) {
  return schedule_of(problem, affinities, query_blocks, threads,
                     [](Index rows) { return divide_up(rows, rows_per_block); });
}

}  // namespace stm_fast
