// Attention of single positions over many keys, divided among threads in three steps: scores (a
// range of keys each), weights (an online softmax, a row each), and sums over values (some columns
// each). Bound by reading the cache.

#include "cpu/attention_split.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <vector>

#include "cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/attention_split.cc"
#include <hwy/foreach_target.h>

#include "cpu/attention_blocks.h"

HWY_BEFORE_NAMESPACE();
namespace mixtral::cpu::HWY_NAMESPACE {
namespace {

int64_t split_scratch(int64_t heads, int64_t width) {
  const int64_t stride = padded(width);
  return (heads + 4) * stride + stride * kKeys;
}

template <class T>
void scores_of(const SplitTile& s, int64_t begin, int64_t end, float* room) {
  const AttentionTile& t = s.tile;
  const int64_t stride = padded(t.width);
  float* query = room;
  float* four_rows = query + t.heads * stride;
  float* packed = four_rows + 4 * stride;
  pack_heads(t.query, t.query_stride, 1, t.heads, t.width, t.scale * kLog2E, query);
  const Rows<T> keys = key_rows<T>(t);
  for (int64_t block = begin; block < end; ++block) {
    pack_transposed(keys, (s.first_block + block) * kKeys, s.first_key, t.first, t.width, four_rows,
                    packed);
    multiply({.a = query,
              .a_row = stride,
              .a_step = 1,
              .b = packed,
              .b_stride = kKeys,
              .c = s.scores + block * kKeys,
              .c_stride = s.score_stride(),
              .depth = t.width},
             t.heads, padded(s.visible(block)));
  }
}

/// Scores of blocks [begin, end).
void split_scores(const SplitTile& s, int64_t begin, int64_t end, float* room) {
  with_element(s.tile.type, [&]<class T>(T) HWY_ATTR { scores_of<T>(s, begin, end, room); });
}

/// One head's weights, from its scores.
void split_weights(const SplitTile& s, int64_t head) {
  float largest[kLanes], factor[kLanes];
  std::fill_n(largest, kLanes, -FLT_MAX);
  std::fill_n(s.total + head * kLanes, kLanes, 0.f);
  TileState state{};
  state.total = s.total + head * kLanes;
  state.largest = largest;
  state.score_stride = s.score_stride();
  for (int64_t block = 0; block < s.blocks; ++block) {
    state.scores = s.scores + head * s.score_stride() + block * kKeys;
    online_softmax(s.tile, state, 0, 1, (s.first_block + block) * kKeys,
                   padded(s.visible(block)) / kLanes, factor);
    s.factors[block * s.tile.heads + head] = factor[0];
  }
}

template <class T>
void values_of(const SplitTile& s, int64_t column, int64_t columns, float* room) {
  const AttentionTile& t = s.tile;
  const int64_t stride = padded(columns);
  float* out = room;
  float* packed = out + t.heads * stride;
  std::fill_n(out, t.heads * stride, 0.f);
  const Rows<T> values = value_rows<T>(t, column);
  for (int64_t block = 0; block < s.blocks; ++block) {
    pack_rows(values, (s.first_block + block) * kKeys, s.first_key, t.first, columns, 1, packed);
    multiply({.a = s.scores + block * kKeys,
              .a_row = s.score_stride(),
              .a_step = 1,
              .b = packed,
              .b_stride = stride,
              .c = out,
              .c_stride = stride,
              .depth = s.visible(block),
              .start = Start::scaled_c,
              .factor = s.factors + block * t.heads},
             t.heads, stride);
  }
  for (int64_t head = 0; head < t.heads; ++head) {
    const Floats inverse = broadcast(1 / lane_sum(load(s.total + head * kLanes)));
    const float* from = out + head * stride;
    float* to = t.out + head * t.width + column;
    for_lanes(columns, [&](int64_t i, int64_t count)
                           HWY_ATTR { store_n(load(from + i) * inverse, to + i, count); });
  }
}

/// Columns [column, column + columns) of the result.
void split_values(const SplitTile& s, int64_t column, int64_t columns, float* room) {
  with_element(s.tile.type, [&]<class T>(T) HWY_ATTR { values_of<T>(s, column, columns, room); });
}

}  // namespace
}  // namespace mixtral::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mixtral::cpu {
namespace {

HWY_EXPORT(split_scratch);
HWY_EXPORT(split_scores);
HWY_EXPORT(split_weights);
HWY_EXPORT(split_values);

constexpr int64_t kBlocksAtOnce = 4;  // of scores that a thread takes

}  // namespace

void attend_split(std::span<const AttentionTile> tiles, ThreadPool& pool, Scratch& scratch,
                  Scratch& shared) {
  std::vector<SplitTile> all;
  int64_t floats = 0, most_blocks = 0;
  for (const AttentionTile& tile : tiles) {
    CHECK(tile.positions == 1 && tile.log_sum == nullptr);
    SplitTile& s = all.emplace_back();
    s.tile = tile;
    s.first_key = tile.window > 0 ? std::max<int64_t>(0, tile.first - tile.window + 1) : 0;
    s.first_block = s.first_key / kKeys;
    s.blocks = tile.first / kKeys + 1 - s.first_block;
    floats += tile.heads * (s.score_stride() + s.blocks + 16);
    most_blocks = std::max(most_blocks, s.blocks);
  }
  auto* room = static_cast<float*>(shared.get(0, floats * int64_t{sizeof(float)}));
  for (SplitTile& s : all) {
    s.scores = room;
    s.total = s.scores + s.tile.heads * s.score_stride();
    s.factors = s.total + s.tile.heads * 16;
    room = s.factors + s.tile.heads * s.blocks;
  }
  const auto count = static_cast<int64_t>(tiles.size());
  const int64_t heads = tiles.front().heads, width = tiles.front().width;
  const int64_t bytes = HWY_DYNAMIC_DISPATCH(split_scratch)(heads, width) * int64_t{sizeof(float)};
  const auto own = [&](int thread) { return static_cast<float*>(scratch.get(thread, bytes)); };
  const auto tile_at = [&](int64_t i) -> const SplitTile& { return all[static_cast<size_t>(i)]; };

  const int64_t ranges = (most_blocks + kBlocksAtOnce - 1) / kBlocksAtOnce;
  pool.for_each(count * ranges, [&](int64_t item, int thread) {
    const SplitTile& s = tile_at(item / ranges);
    const int64_t begin = item % ranges * kBlocksAtOnce;
    const int64_t end = std::min(begin + kBlocksAtOnce, s.blocks);
    if (begin < end) HWY_DYNAMIC_DISPATCH(split_scores)(s, begin, end, own(thread));
  });
  pool.for_each(count * heads, [&](int64_t item, int) {
    HWY_DYNAMIC_DISPATCH(split_weights)(tile_at(item / heads), item % heads);
  });
  // The columns of one cache line, so that no line is read by two threads.
  const int64_t columns = 64 / size_of(stored_dtype(tiles.front().type));
  const int64_t parts = (width + columns - 1) / columns;
  pool.for_each(count * parts, [&](int64_t item, int thread) {
    const int64_t column = item % parts * columns;
    HWY_DYNAMIC_DISPATCH(split_values)
    (tile_at(item / parts), column, std::min(columns, width - column), own(thread));
  });
}

}  // namespace mixtral::cpu
#endif  // HWY_ONCE
