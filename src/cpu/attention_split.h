#pragma once

#include <span>

#include "base/threads.h"
#include "cpu/attention_tile.h"
#include "cpu/scratch.h"

namespace mixtral::cpu {

/// Positions from which it pays to divide a tile's keys among threads.
inline constexpr int64_t kLeastSplitKeys = 512;

/// A tile of one position, and what its steps hand on.
struct SplitTile {
  AttentionTile tile;
  int64_t first_key = 0, first_block = 0, blocks = 0;
  float* scores = nullptr;   // [heads, blocks · kKeys], then the weights
  float* factors = nullptr;  // [blocks, heads]: of what was summed before the block
  float* total = nullptr;    // [heads, 16]: Σ p, by lane

  int64_t score_stride() const { return blocks * kKeys; }
  /// Keys of a block up to the last one that is seen.
  int64_t visible(int64_t block) const {
    const int64_t keys = tile.first + 1 - (first_block + block) * kKeys;
    return keys < kKeys ? keys : kKeys;
  }
};

/// Computes tiles of one position each, with all threads at every one of them. The bits are those
/// of a tile that one thread computes: what is divided are the scores by key, and the sums over
/// values by column; no sum is.
void attend_split(std::span<const AttentionTile> tiles, ThreadPool& pool, Scratch& scratch,
                  Scratch& shared);

}  // namespace mixtral::cpu
