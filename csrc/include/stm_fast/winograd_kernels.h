// The transforms of winograd.h, compiled once for each instruction set and chosen with the tile kernels.
#pragma once

#include "stm_fast/element.h"
#include "stm_fast/matrix.h"

namespace stm_fast {

// An image [height, width, channels], of which only some rows may be in memory: row y is at y % stored_rows.
template <class Stored>
struct Image {
  Stored* data;
  Index height, width, channels;
  Index stored_rows;

  Stored* row(Index y) const { return data + y % stored_rows * width * channels; }
};

// Tiles from `first`, numbered row by row, and their values [points, tiles, channels].
struct TileRange {
  Index first;
  Index count;
  Index point_stride;  // of the values: from a point to the next
  Index tile_stride;
};

// Inputs are padded with zeros; so are channels, up to a whole vector. With relu, negative inputs count as 0.
template <class Stored, class Point>
struct TransformedInput {
  Image<const Stored> image;
  TileRange tiles;
  Point* points;
  bool relu;
};

// Some channels of y = [relu](transformed sums + bias [+ residual]).
template <class Stored>
struct TransformedOutput {
  Image<Stored> image;
  const Stored* residual;  // an image that is in memory like y; or null
  TileRange tiles;
  const float* sums;
  const float* bias;  // [channels], readable up to a whole panel
  Index first_channel;
  Index channels;
  bool relu;
};

template <class Stored, class Point>
struct WinogradKernels {
  void (*input)(const TransformedInput<Stored, Point>&);
  void (*output)(const TransformedOutput<Stored>&);
};

struct AllWinogradKernels {
  WinogradKernels<float, float> floats;
  WinogradKernels<float, float> floats_of_large_tiles;
  WinogradKernels<BFloat16, float> bfloat16;
};

// The kernels in use; throws as tile_kernels() does.
const AllWinogradKernels& winograd_kernels();

// Kernels for points in bfloat16; null if the machine has no products of them that are faster than those of floats.
const WinogradKernels<BFloat16, BFloat16>* winograd_pair_kernels();

}  // namespace stm_fast
