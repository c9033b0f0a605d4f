// The source of QuantizedKernels. It is included after tile_kernels_source.h by instruction sets with products of
// bfloat16 numbers or of bytes, so it has no include guard; it uses the macros and vectors of that file.
#include <cstdint>

namespace stm_fast::STM_FAST_ISA {

template <class From>
STM_FAST_INLINE Vector<float> to_float(From x) {
  return __builtin_convertvector(x, Vector<float>);
}

// What all scores of one vector of lanes have in common.
template <class Element>
struct LaneScales {
  static constexpr Index terms = directions<Element>;

  STM_FAST_INLINE LaneScales(const ScoreScales<Element>& scales, Index stride, Index lane)
      : scale(load(scales.lane_scale + lane)), offset(load(scales.lane_offset + lane)) {
    STM_FAST_UNROLL for (Index t = 0; t < terms; ++t) { term[t] = load(scales.lane_terms + t * stride + lane); }
  }
  Vector<float> scale, offset, term[terms + 1];
};

template <class Element>
STM_FAST_INLINE Vector<float> score_of(Vector<Register<Element>> sum, Index row, const ScoreScales<Element>& scales,
                                       const LaneScales<Element>& of_lanes) {
  constexpr Index terms = directions<Element>;
  Vector<float> score = of_lanes.offset;
  STM_FAST_UNROLL for (Index t = 0; t < terms; ++t) {
    score += fill(scales.row_terms[row * terms + t]) * of_lanes.term[t];
  }
  return score + to_float(sum) * fill(scales.row_scale[row]) * of_lanes.scale;
}

template <class Element>
STM_FAST_INLINE void scores_of_group(const Product<Element>& product, Index row, const ScoreScales<Element>& scales) {
  Vector<Register<Element>> sum[group_rows][vectors];
  STM_FAST_UNROLL for (Index i = 0; i < group_rows; ++i) {
    STM_FAST_UNROLL for (Index j = 0; j < vectors; ++j) { sum[i][j] = fill(scales.start[row + i]); }
  }
  add_group<Element, true, vectors>(product, product.a + row * product.depth, sum);
  STM_FAST_UNROLL for (Index j = 0; j < vectors; ++j) {
    const LaneScales<Element> of_lanes(scales, product.c_stride, j * width<float>);
    STM_FAST_UNROLL for (Index i = 0; i < group_rows; ++i) {
      store(product.c + (row + i) * product.c_stride + j * width<float>,
            score_of(sum[i][j], row + i, scales, of_lanes));
    }
  }
}

template <class Element>
STM_FAST_TARGET void scores(const Product<Element>& product, const ScoreScales<Element>& scales) {
  for (Index row = 0; row < product.rows; row += group_rows) {
    scores_of_group(product, row, scales);
  }
}

// Weights as bytes: 254 for the largest score, so that no rounding exceeds 255.
template <class Element>
constexpr float largest_weight = std::is_same_v<Element, ByteQuad> ? 254.0f : 1.0f;

// The error of each byte is made up for in the next. So weights too small for one byte are not lost together, the sum
// of the bytes is that of the weights, and where values change little from row to row, as in an image, errors cancel.
// For values without such an order the variance of the errors is larger.
STM_FAST_INLINE Vector<float> write_weights(float* scores, ByteQuad* weights, Index rows, Index stride,
                                            Vector<float> shift) {
  // adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits
  const Vector<float> rounder = fill(12582912.0f), scale = fill(std::log(largest_weight<ByteQuad>));
  Vector<float> total = {}, pending = {};
  for (Index i = 0; i < rows; i += 4) {
    Vector<std::uint32_t> quad = {};
    STM_FAST_UNROLL for (Index k = 0; k < 4; ++k) {
      if (i + k < rows) {
        const Vector<float> weight = exp(load(scores + (i + k) * stride) - shift + scale);
        const Vector<float> wanted = weight + pending, rounded = wanted + rounder;
        total += weight;
        pending = wanted - (rounded - rounder);
        quad |= (reinterpret_cast<Vector<std::uint32_t>>(rounded) & 0xffu) << 8 * k;
      }
    }
    store(&weights[i / 4 * stride].bits, quad);
  }
  return total;
}

template <class Element>
STM_FAST_TARGET void softmax_step_of_block(float* scores, Index rows, Index stride, const BlockSoftmax& state) {
  const Vector<float> nothing = fill(-INFINITY), zero = {};
  for (Index j = 0; j < lanes<float>; j += width<float>) {
    Vector<float> here = nothing;
    for (Index i = 0; i < rows; ++i) {
      const Vector<float> score = load(scores + i * stride + j);
      here = score > here ? score : here;
    }
    const Vector<float> before = load(state.largest + j), largest = here > before ? here : before;
    // without valid scores the largest is -inf, and -inf - -inf would be NaN
    const Vector<float> shift = largest == nothing ? zero : largest;
    const Vector<float> rescale = exp(before - shift);
    const Vector<float> part_scale = exp(here - shift) * (1 / largest_weight<Element>);
    auto* const weights = reinterpret_cast<Element*>(scores + j);
    const Vector<float> total = write_weights(scores + j, weights, rows, stride, here == nothing ? zero : here);
    store(state.largest + j, largest);
    store(state.total + j, rescale * load(state.total + j) + part_scale * total);
    store(state.rescale + j, rescale);
    store(state.part_scale + j, part_scale);
  }
}

// C and its scaled sum of a block.
template <class Sums>
STM_FAST_INLINE Vector<float> with_part(const float* c, Sums sum, float row_scale, Vector<float> rescale,
                                        Vector<float> part_scale) {
  return rescale * load(c) + part_scale * (to_float(sum) * fill(row_scale));
}

template <class Element>
STM_FAST_TARGET void add_values(const Product<Element>& product, const float* row_scale, const BlockSoftmax& state) {
  for (Index row = 0; row < product.rows; row += group_rows) {
    Vector<Register<Element>> sum[group_rows][vectors] = {};
    add_group<Element, true, vectors>(product, product.a + row * product.depth, sum);
    STM_FAST_UNROLL for (Index j = 0; j < vectors; ++j) {
      const Vector<float> rescale = load(state.rescale + j * width<float>);
      const Vector<float> part_scale = load(state.part_scale + j * width<float>);
      STM_FAST_UNROLL for (Index i = 0; i < group_rows; ++i) {
        float* const at = product.c + (row + i) * product.c_stride + j * width<float>;
        store(at, with_part(at, sum[i][j], row_scale[row + i], rescale, part_scale));
      }
    }
  }
}

template <class Element>
constexpr QuantizedKernels<Element> quantized_table = {
    group_rows,          lanes<float>,          scores<Element>, softmax_step_of_block<Element>,
    add_values<Element>, scaled_product<float>, nullptr,
};

}  // namespace stm_fast::STM_FAST_ISA
