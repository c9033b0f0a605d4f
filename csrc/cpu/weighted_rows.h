// The weighted sum of listed rows of a matrix, the inner loop of reads that gather values.
#pragma once

#include <algorithm>

#include "stm_fast/matrix.h"
#include "stm_fast/number.h"

namespace stm_fast {

// Channels that are summed together: all of them if the numbers of a row are contiguous. If those of a channel are, few
// at a time, so that they stay in the cache while all sums read them.
template <class Stored>
Index channels_together(const Matrix<const Stored>& value, Index channels) {
  return value.row_stride < value.column_stride ? std::min<Index>(4, channels) : channels;
}

// sums[c] += weight * from[c * stride]
template <class Stored>
void add_row(const Stored* from, Index stride, Index channels, Accumulator<Stored> weight, Accumulator<Stored>* sums) {
  if (stride == 1) {
    for (Index c = 0; c < channels; ++c) {
      sums[c] += weight * widen(from[c]);
    }
  } else {
    for (Index c = 0; c < channels; ++c) {
      sums[c] += weight * widen(from[c * stride]);
    }
  }
}

// out[i * stride + c] = sum of weight * value[row, c] over list i. each_entry(i, add) calls add(row, weight) for its
// entries; sums has room for all channels.
template <class Stored, class Result, class EachEntry>
void sum_rows(const Matrix<const Stored>& value, Index channels, Index lists, const EachEntry& each_entry,
              Accumulator<Stored>* sums, Result* out, Index stride) {
  using T = Accumulator<Stored>;
  const Index step = channels_together(value, channels);
  for (Index channel = 0; channel < channels; channel += step) {
    const Index count = std::min(step, channels - channel);
    for (Index list = 0; list < lists; ++list) {
      std::fill_n(sums, count, T(0));
      each_entry(list, [&](Index row, T weight) {
        add_row(&value.at(row, channel), value.column_stride, count, weight, sums);
      });
      std::transform(sums, sums + count, out + list * stride + channel, narrow<Result>);
    }
  }
}

}  // namespace stm_fast
