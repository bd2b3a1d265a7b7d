#pragma once

#include "cuda/stream_codecs.cuh"
#include "cuda/stream_task.h"

/// How streamed products (stream_kernel.cuh) divide a block's shared memory, and in which order
/// they go over a product.
namespace mixtral::cuda {

constexpr int kStreamStepBytes = 128;  // of a row of codes: a line of memory
constexpr int kStreamTurns = 2;        // items whose sums are kept at once

/// How a product is divided into items, and what a block's shared memory is divided into. An item
/// has `tiles` of weights and up to `rows` rows of x: 4 (of integer codes alone), 8, 16 or 32.
/// `wide`: the scales of each step are side by side, and aligned to be copied at once.
template <StreamCodec codec, int tiles, int rows, bool wide>
struct StreamShape {
  using Traits = StreamTraits<codec>;
  static constexpr int kRows = rows;
  static constexpr int kRowTiles = rows <= 8 ? 1 : rows / 8;
  /// Warps of a team, which share an item's columns. Where codes are unpacked for many rows, or by
  /// a table, few warps with many registers are faster than more with few: they wait less for each
  /// other at an item's end.
  static constexpr int kWarps = !Traits::kScaled || (kRowTiles == 1 && !Traits::kTable) ? 8 : 4;
  static constexpr int kTeamThreads = kWarps * kWarp;
  /// Teams of a multiprocessor, 8 or 16 warps in all. A team is a block, or all are one where they
  /// share a table. With what a block has beside, they come to the 196 KB that `chain` asks for.
  static constexpr int kAllTeams = kRowTiles == 1 && Traits::kTable    ? 4
                                   : kRowTiles == 1 || Traits::kScaled ? 2
                                                                       : 1;
  static constexpr int kTeams = Traits::kTable ? kAllTeams : 1;  // of a block
  static constexpr int kBlocks = kAllTeams / kTeams;
  static constexpr int kThreads = kTeams * kTeamThreads;
  /// A lane's columns of x are kept for all tiles: of a step, or of a part where they are many.
  static constexpr int kPieces = Traits::kInteger && rows == 32        ? 2 * Traits::kGroups
                                 : Traits::kBits == 4 && kRowTiles > 1 ? 2
                                                                       : 1;  // of a step
  static constexpr int kPieceGroups = 2 * Traits::kGroups / kPieces;         // of 64 columns
  static constexpr int kXRegisters = kPieceGroups * rows * Traits::kXWords / 8;
  static constexpr bool kAhead =  // x is loaded a piece ahead
      kXRegisters <= (kAllTeams * kWarps == 16 ? 16 : 32);

  /// TMA copies scales and minima in chunks of several steps, for all warps of a team. A copy by a
  /// lane would take a line of the first-level cache from x. But the warps of a team wait for each
  /// other's chunks, which costs more than it saves where rows are many and there are no minima.
  static constexpr bool kChunks = wide && (rows == 4 || Traits::kMinima);
  static constexpr int kWeights = 16 * kStreamStepBytes;  // of a tile's step
  static constexpr int kScales =
      Traits::kScaled && !kChunks ? Traits::kScaleLanes * Traits::kScaleWords * 4 : 0;
  // A chunk: a line of scales of each row of an item, then of minima.
  static constexpr int kChunkBytes = 128;
  static constexpr int kChunkSteps = kChunkBytes / (4 * Traits::kScaleWords);
  static constexpr int kMinimaAt = 16 * tiles * kChunkBytes;
  static constexpr int kChunk = kChunks ? Traits::kScaleArrays * kMinimaAt : 0;
  static constexpr int kChunkPlaces = 2;
  // Sums: a lane has one row of x or two, of two rows of weights, in each part.
  static constexpr int kParts = tiles * kRowTiles;
  static constexpr int kRowsOfLane = rows == 4 ? 1 : 2;
  static constexpr int kSumsOfLane = 2 * kRowsOfLane;
  static constexpr int kSumsOfWarp = kParts * kWarp * kSumsOfLane;
  static constexpr int kSums = kStreamTurns * kWarps * kSumsOfWarp * 4;  // of a team
  static constexpr int kTable = Traits::kTable ? kLevelTableBytes : 0;
  static constexpr int kRoom = ((196 - 3 * kBlocks) << 10) / kBlocks / 128 * 128;
  static constexpr bool kBoxes = Traits::kScaled;  // codes are copied by TMA
  static constexpr int kAlign = 1024;              // of what TMA swaps 16 bytes in
  static constexpr int kTeamRoom =
      (kRoom - kTable - kAlign) / kTeams / kAlign * kAlign - kSums - kChunkPlaces * kChunk;
  static constexpr int kMostTiles = kTeamRoom / ((kWeights + kScales) * kWarps);
  /// Tiles that are copied at one time: all of a step where the ring has room for two.
  static constexpr int kTogether = kMostTiles >= 2 * tiles ? tiles : 1;
  static constexpr int kMostLoads = kMostTiles / kTogether;
  static constexpr int kLoads = kMostLoads < 8 ? kMostLoads : 8;  // of a ring
  static constexpr int kCodesOfLoad = kTogether * kWeights, kScalesOfLoad = kTogether * kScales;
  // A team has all rings' codes, then the chunks or all rings' scales, then the sums.
  static constexpr int kChunksAt = kWarps * kLoads * kCodesOfLoad;
  static constexpr int kScalesAt = kChunksAt + kChunkPlaces * kChunk;
  static constexpr int kSumsAt = kScalesAt + kWarps * kLoads * kScalesOfLoad;
  static constexpr int kTeamBytes = (kSumsAt + kSums + kAlign - 1) / kAlign * kAlign;
  static constexpr int kBytes = kTable + kTeams * kTeamBytes + kAlign;
  static_assert(kLoads >= 2 && (kPieces == 1 || kTogether == tiles));
};

/// Where a warp's stream of steps is: group, item and step. Items of a group with many rows of x
/// are its tiles times the chunks of these, chunks of one tile side by side.
template <int chunk_rows>
struct StreamPlace {
  const int* offsets;  // in shared memory
  int groups, tiles;
  int group = 0, item = 0;  // item: within the group; group == groups: at the end
  int chunks = 0;           // of the group

  __device__ StreamPlace(const int* of_groups, int group_count, int tile_count, int first)
      : offsets(of_groups), groups(group_count), tiles(tile_count) {
    count_chunks();
    advance(first);
  }
  __device__ void count_chunks() {
    chunks = (offsets[group + 1] - offsets[group] + chunk_rows - 1) / chunk_rows;
  }
  /// Goes `count` items on.
  __device__ void advance(int count) {
    if (at_end()) return;
    item += count;
    while (item >= tiles * chunks) {
      item -= tiles * chunks;
      if (++group == groups) return;
      count_chunks();
    }
  }
  __device__ bool at_end() const { return group >= groups; }
  __device__ int tile() const { return chunks == 1 ? item : item / chunks; }
  __device__ int chunk() const { return chunks == 1 ? 0 : item % chunks; }
  __device__ int first_row() const { return offsets[group] + chunk() * chunk_rows; }
  __device__ int count() const { return min(chunk_rows, offsets[group + 1] - first_row()); }
};

}  // namespace mixtral::cuda
