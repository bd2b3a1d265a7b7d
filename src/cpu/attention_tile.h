#pragma once

#include <cstdint>

#include "ops/attention.h"

namespace mixtral::cpu {

// Attention is computed in tiles: a run of positions of one sequence, with the query heads of one
// key/value head, against blocks of that head's keys. Row m of a tile is position m / (H / G), head
// m mod (H / G). Key blocks start at multiples of kKeys from the sequence's start; a score is one
// chain of multiply-adds over the head width; a sum over keys goes in order of position. So a row's
// result does not depend on the tile it is in, nor on where its keys and values are kept.
//
// This header is included by files that are compiled for one instruction set: no inline functions.

inline constexpr int64_t kKeys = 64;          // of a block
inline constexpr int64_t kForwardRows = 128;  // of a tile, unless one position has more heads
inline constexpr int64_t kBackwardRows = 64;

/// One tile of the forward pass.
struct AttentionTile {
  const float* query = nullptr;  // the first position's first head of the group
  int64_t query_stride = 0;      // floats from one position to the next
  int64_t first = 0;             // position in the sequence
  int64_t positions = 0;
  /// Key j of the sequence is `stride` · j elements behind `keys`. In pages of T = 2^page_shift
  /// positions it is (T · `stride` + `page_rest`) · pages[j / T] + `stride` · (j mod T) elements
  /// behind. Values likewise.
  const void* keys = nullptr;
  const void* values = nullptr;
  ops::CacheType type = ops::CacheType::f32;
  int64_t stride = 0;
  const int32_t* pages = nullptr;  // null: no pages
  int page_shift = 0;
  int64_t page_rest = 0;  // elements of a page behind its rows
  /// Of codes, the scales of page 0: one float a position, in each page behind its rows.
  const uint8_t* key_scales = nullptr;
  const uint8_t* value_scales = nullptr;
  float* out = nullptr;
  int64_t out_stride = 0;
  float* log_sum = nullptr;  // the group's first; or null
  int64_t log_sum_stride = 0;
  int64_t heads = 0;  // query heads of the group
  int64_t width = 0;
  int64_t window = 0;
  float scale = 0;
  float* scratch = nullptr;  // of tile_scratch floats
};

/// Which gradients a task of the backward pass computes.
enum class Gradients : uint8_t { queries, keys_and_values, all };

/// A part of the backward pass: one sequence, one key/value head, some of its query and key
/// positions. Queries' gradients are complete when the keys are; and the other way round.
struct AttentionBackwardTask {
  int64_t start = 0;  // the sequence's first token
  int64_t group = 0;
  int64_t query_begin = 0, query_end = 0;  // positions
  int64_t key_begin = 0, key_end = 0;      // positions; begins at a block
  Gradients gradients = Gradients::all;
};

}  // namespace mixtral::cpu
