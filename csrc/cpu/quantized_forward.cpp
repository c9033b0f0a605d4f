#include <limits>
// The forward read of a quantized memory from products of its numbers as they are stored: int8 by bytes, fp8 by
// bfloat16 numbers, which every e4m3 number is. The loops are those of forward.cpp, except that
//   - a block of memory rows lies within one slot, so that scales of values and means of keys apply to whole products;
//   - weights are relative to the largest score of their block, and the sums of a block are scaled when they are added:
//     weights in eight bits keep their accuracy where a later block, or an earlier one, has far larger scores.
#include "clones.h"
#include "panel_sums.h"
#include "passes.h"
#include "quantized_queries.h"
#include "quantized_rows.h"

namespace stm_fast {

namespace {

// What is multiplied for numbers that are Stored.
template <class Stored>
using ElementOf = std::conditional_t<std::is_same_v<Stored, Int8>, ByteQuad, BFloat16Pair>;

// The most rows of a block: bytes take half of the space of bfloat16 numbers, and fewer blocks are added to the sums.
template <class Element>
constexpr Index most_rows = std::is_same_v<Element, ByteQuad> ? 2 * rows_per_block : rows_per_block;

static_assert(Index{255} * 128 * most_rows<ByteQuad> <= std::numeric_limits<std::int32_t>::max());

// Sums of a row of bytes: itself, and times each direction.
STM_FAST_CLONES
void sums_of_row(const std::int8_t* __restrict row, Index count, const std::int16_t* __restrict direction,
                 std::int32_t* __restrict sums) {
  static_assert(directions<ByteQuad> == 3);
  std::int32_t plain = 0, first = 0, second = 0, third = 0;
  for (Index c = 0; c < count; ++c) {
    const std::int16_t number = row[c];
    plain += number;
    first += number * direction[c];
    second += number * direction[count + c];
    third += number * direction[2 * count + c];
  }
  sums[0] = plain, sums[1] = first, sums[2] = second, sums[3] = third;
}

STM_FAST_CLONES
void widen_row(const Float8* __restrict row, Index count, BFloat16* __restrict wide) {
  for (Index c = 0; c < count; ++c) {
    wide[c].bits = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(widen(row[c])) >> 16);
  }
}

// A copy of [rows, columns] as bfloat16, in the order of the source if that is dense.
Matrix<const BFloat16> widened(Matrix<const Float8> source, Index rows, Index columns, BFloat16* wide) {
  if (source.column_stride != 1 && source.row_stride == 1) {
    return widened(source.transposed(), columns, rows, wide).transposed();
  }
  for (Index i = 0; i < rows; ++i) {
    BFloat16* const to = wide + i * columns;
    if (source.column_stride == 1) {
      widen_row(&source.at(i, 0), columns, to);
    } else {
      for (Index c = 0; c < columns; ++c) {
        widen_row(&source.at(i, c), 1, to + c);
      }
    }
  }
  return {wide, columns, 1};
}

template <class Stored>
class QuantizedPass : public PanelSums<float> {
  using Element = ElementOf<Stored>;
  static constexpr Index terms = directions<Element>;

 public:
  QuantizedPass(const ReadProblem<Stored>& problem, const Affinities& affinities, const QueryBlocks& blocks,
                const SlotBlocks& rows, const ReadResults<Stored>& results, std::atomic<bool>& overflowed)
      : PanelSums<float>(affinities, blocks, problem.value_dim, quantized_kernels<Element>()->group_rows),
        problem_(problem),
        kernels_(*quantized_kernels<Element>()),
        depth_(depth_of<Element>(problem.key_dim)),
        rows_(rows),
        results_(results),
        overflowed_(overflowed) {}

  // The workspace of one thread.
  struct Workspace {
    Workspace(const QuantizedPass& pass, Carver& carver)
        : query(pass.block_queries(), pass.problem_.key_dim, carver),
          tiles(pass.affinities_.most_objects() > 1 ? pass.blocks_.largest_block() : 1),
          tile_size(round_up(pass.rows_.rows, pass.kernels_.group_rows) * pass.blocks_.lanes) {
      const Index queries = pass.block_queries(), key_dim = pass.problem_.key_dim, group = pass.kernels_.group_rows;
      const Index rows = tile_size / pass.blocks_.lanes;
      query_offset = carver.take<float>(queries);
      floats = carver.take<float>(queries * key_dim);
      means = carver.take<float>(group * key_dim);
      mean_scores = carver.take<float>(group * queries);
      keys = carver.take<Element>(rows * pass.depth_);
      key_start = carver.take<Register<Element>>(rows);
      key_scale = carver.take<float>(rows);
      key_terms = carver.take<float>(rows * terms);
      values = carver.take<Element>(pass.padded_value_dim_ * depth_of<Element>(pass.rows_.rows));
      value_scale = carver.take<float>(pass.padded_value_dim_);
      wide = carver.take<BFloat16>(std::is_same_v<Stored, Float8> ? pass.rows_.rows * std::max(key_dim, strip) : 0);
      scores = carver.take<float>(tiles * tile_size);
      rescale = carver.take<float>(tiles * pass.blocks_.lanes);
      part_scale = carver.take<float>(tiles * pass.blocks_.lanes);
      out = carver.take<float>(pass.means_size());
    }
    PackedQueries<Element> query;
    Index tiles;  // one per panel if several objects use them, otherwise one
    Index tile_size;
    float* query_offset;           // [panels][lanes], the scores of the mean of a slot
    float* floats;                 // [panels][Ck][lanes], queries as given
    float* means;                  // [Ck][group_rows], of slots
    float* mean_scores;            // [panels][group_rows][lanes], of slots
    Element* keys;                 // [row groups][depth][group_rows]
    Register<Element>* key_start;  // [rows], as ScoreScales has them
    float* key_scale;              // [rows]
    float* key_terms;              // [rows][terms]
    Element* values;               // [channel groups][rows][group_rows]
    float* value_scale;            // [value_dim padded]
    BFloat16* wide;                // numbers before packing
    float* scores;                 // [tiles][rows][lanes]
    float* rescale;                // [tiles][lanes]
    float* part_scale;             // [tiles][lanes]
    float* out;                    // scratch of for_means
  };

  void read(const Segment& segment, const Workspace& work, const Partial& result) const {
    const Index object = affinities_.first_object(segment.affinity), objects = affinities_.objects_of(segment.affinity);
    const Index valid = problem_.rows_of(object), panels = blocks_.panels_in(segment.query_block);
    pack_queries(object, segment, work);
    clear(segment, result);
    Index first_slot = -1, slot = -1;
    for (Index block = segment.begin; block < segment.end; ++block) {
      const Index row = rows_.first_row(block), rows = rows_.rows_in(block, valid);
      if (rows == 0) {
        break;
      }
      if (slot != rows_.slot_of(block)) {
        slot = rows_.slot_of(block);
        if (first_slot < 0 || slot >= first_slot + kernels_.group_rows) {
          first_slot = slot;
          make_mean_scores(object, slot, panels, work);
        }
        use_mean_scores(slot - first_slot, panels, work);
      }
      pack_keys(object, row, rows, work);
      for (Index other = 0; other < objects; ++other) {
        pack_values(object + other, row, rows, work);
        for (Index panel = 0; panel < panels; ++panel) {
          const BlockSoftmax softmax = softmax_of(panel, work, result);
          float* const scores = work.scores + panel % work.tiles * work.tile_size;
          if (other == 0) {
            make_scores(panel, rows, scores, work);
            kernels_.softmax_step(scores, rows, blocks_.lanes, softmax);
          }
          add_values(rows, scores, softmax, sums_of(result, other, panel), work);
        }
      }
    }
  }

  void write(const Segment& segment, const Workspace& work, const Partial& result) const {
    for_means(segment, result, work.out,
              [&](Index object, Index query, float largest, float total, const float* means) {
                write_query<Stored>(results_, object * blocks_.queries + query, value_dim_, largest, total, means,
                                    overflowed_);
              });
  }

 private:
  static constexpr Index strip = 32;  // channels widened at a time, whole groups

  void pack_queries(Index object, const Segment& segment, const Workspace& work) const {
    const Index lanes = blocks_.lanes, queries = blocks_.panels_in(segment.query_block) * lanes;
    const Index count = blocks_.queries_in_block(segment.query_block);
    const Matrix<const float> query = problem_.query[object].from_row(blocks_.first_panel(segment.query_block) * lanes);
    pack_panels(query, count, problem_.key_dim, lanes, work.floats);
    std::fill_n(work.query.terms, queries * terms, 0.0f);
    if constexpr (std::is_same_v<Element, ByteQuad>) {
      std::fill_n(work.query.scale, queries, 0.0f);
      QueryQuantizer(problem_.scale, count, problem_.key_dim, lanes, work.query).run(query);
    } else {
      std::fill_n(work.query.scale, queries, problem_.scale);
      round_queries(query, count, problem_.key_dim, lanes, work.query);
    }
  }

  // The products of the queries with the mean keys of a group of slots.
  void make_mean_scores(Index object, Index slot, Index panels, const Workspace& work) const {
    const Index lanes = blocks_.lanes, group = kernels_.group_rows, key_dim = problem_.key_dim;
    const Index slots = std::min(group, divide_up(problem_.rows_of(object), rows_.slot_rows) - slot);
    pack_panels(problem_.quantization.key_mean[object].from_row(slot), slots, key_dim, group, work.means);
    for (Index panel = 0; panel < panels; ++panel) {
      kernels_.scaled_product({group, key_dim, work.means, 0, work.floats + panel * key_dim * lanes, lanes,
                               work.mean_scores + panel * group * lanes, lanes},
                              problem_.scale);
    }
  }

  // Those of one of the slots.
  void use_mean_scores(Index slot, Index panels, const Workspace& work) const {
    const Index lanes = blocks_.lanes;
    for (Index panel = 0; panel < panels; ++panel) {
      std::copy_n(work.mean_scores + (panel * kernels_.group_rows + slot) * lanes, lanes,
                  work.query_offset + panel * lanes);
    }
  }

  void pack_keys(Index object, Index row, Index rows, const Workspace& work) const {
    const Index padded = round_up(rows, kernels_.group_rows), key_dim = problem_.key_dim;
    const Matrix<const Stored> keys = problem_.key[object].from_row(row);
    const Matrix<const float> scale = problem_.quantization.key_scale[object].from_row(row);
    std::fill_n(work.key_start, padded, Register<Element>(0));
    std::fill_n(work.key_scale, padded, 0.0f);
    std::fill_n(work.key_terms, padded * terms, 0.0f);
    for (Index j = 0; j < rows; ++j) {
      work.key_scale[j] = scale.at(j, 0);
    }
    if constexpr (std::is_same_v<Element, ByteQuad>) {
      for (Index j = 0; j < rows; ++j) {
        describe_key(keys.from_row(j), j, work);
      }
      pack_panels(keys, rows, key_dim, kernels_.group_rows, work.keys);
    } else {
      pack_panels(widened(keys, rows, key_dim, work.wide), rows, key_dim, kernels_.group_rows, work.keys);
    }
    arrange(kernels_, work.keys, rows, depth_);
  }

  // What the offset of the bytes of queries adds to its products, and its products with the directions.
  void describe_key(Matrix<const Int8> key, Index j, const Workspace& work) const {
    constexpr std::int32_t offset = 128;
    std::int32_t sums[1 + terms];
    if (key.column_stride == 1) {
      sums_of_row(&key.data->bits, problem_.key_dim, work.query.direction, sums);
    } else {
      auto* const row = reinterpret_cast<std::int8_t*>(work.query.rounded);
      for (Index c = 0; c < problem_.key_dim; ++c) {
        row[c] = key.at(0, c).bits;
      }
      sums_of_row(row, problem_.key_dim, work.query.direction, sums);
    }
    work.key_start[j] = -offset * sums[0];
    for (Index t = 0; t < terms; ++t) {
      work.key_terms[j * terms + t] = work.key_scale[j] * static_cast<float>(sums[t + 1]);
    }
  }

  void pack_values(Index object, Index row, Index rows, const Workspace& work) const {
    const Matrix<const Stored> channels = values_in_slot(problem_, object, row).transposed();
    const Matrix<const float> scale = problem_.quantization.value_scale[object].from_row(row / rows_.slot_rows);
    std::fill(work.value_scale + value_dim_, work.value_scale + padded_value_dim_, 0.0f);
    for (Index c = 0; c < value_dim_; ++c) {
      work.value_scale[c] = scale.at(0, c);
    }
    if constexpr (std::is_same_v<Element, ByteQuad>) {
      pack_panels(channels, value_dim_, rows, kernels_.group_rows, work.values);
    } else {
      for (Index c = 0; c < value_dim_; c += strip) {
        const Index count = std::min(strip, value_dim_ - c);
        pack_panels(widened(channels.from_row(c), count, rows, work.wide), count, rows, kernels_.group_rows,
                    work.values + c * depth_of<Element>(rows));
      }
    }
    arrange(kernels_, work.values, value_dim_, depth_of<Element>(rows));
  }

  BlockSoftmax softmax_of(Index panel, const Workspace& work, const Partial& result) const {
    const Index lanes = blocks_.lanes, tile = panel % work.tiles;
    return {result.largest + panel * lanes, result.total + panel * lanes, work.rescale + tile * lanes,
            work.part_scale + tile * lanes};
  }

  void make_scores(Index panel, Index rows, float* scores, const Workspace& work) const {
    const Index lanes = blocks_.lanes;
    kernels_.scores({rows, depth_, work.keys, 0, work.query.panels + panel * depth_ * lanes, lanes, scores, lanes},
                    {work.key_start, work.key_scale, work.key_terms, work.query.scale + panel * lanes,
                     work.query_offset + panel * lanes, work.query.terms + panel * terms * lanes});
  }

  // Adds the packed values, weighted by a tile, to the sums of a panel.
  void add_values(Index rows, const float* scores, const BlockSoftmax& softmax, float* sums,
                  const Workspace& work) const {
    const Index lanes = blocks_.lanes;
    kernels_.add_values({padded_value_dim_, depth_of<Element>(rows), work.values, 0,
                         reinterpret_cast<const Element*>(scores), lanes, sums, lanes},
                        work.value_scale, softmax);
  }

  const ReadProblem<Stored>& problem_;
  const QuantizedKernels<Element>& kernels_;
  const Index depth_;  // of a key, in elements
  const SlotBlocks rows_;
  const ReadResults<Stored> results_;
  std::atomic<bool>& overflowed_;
};

}  // namespace

template <class Stored>
bool multiplies_quantized(const ReadProblem<Stored>& problem) {
  // below, blocks of rows would be too short
  constexpr Index fewest_rows = 8;
  return quantized_kernels<ElementOf<Stored>>() != nullptr && problem.quantization.slot_rows >= fewest_rows &&
         problem.key_dim <= widest_key;
}

template <class Stored>
void read_quantized(const ReadProblem<Stored>& problem, const Parallel& parallel, const ReadResults<Stored>& results,
                    std::atomic<bool>& overflowed) {
  using Element = ElementOf<Stored>;
  const Affinities affinities(problem, objects_together);
  const QueryBlocks blocks =
      blocks_of_many(problem.queries, problem.rows, quantized_kernels<Element>()->lanes, affinities, parallel.threads);
  const SlotBlocks rows(problem.quantization.slot_rows, most_rows<Element>);
  const Schedule schedule =
      schedule_of(problem, affinities, blocks.count, parallel.threads, [&](Index first) { return rows.count(first); });
  run_pass(QuantizedPass<Stored>(problem, affinities, blocks, rows, results, overflowed), schedule, parallel);
}

#define STM_FAST_INSTANTIATE(Stored)                                                                    \
  template bool multiplies_quantized(const ReadProblem<Stored>&);                                       \
  template void read_quantized(const ReadProblem<Stored>&, const Parallel&, const ReadResults<Stored>&, \
                               std::atomic<bool>&);
STM_FAST_INSTANTIATE(Int8)
STM_FAST_INSTANTIATE(Float8)

}  // namespace stm_fast
