// The forward pass of attention: for each group of rows in registers, scores with a block of keys,
// their exponentials (an online softmax), and the product with the block's values. Bound by the
// multiply-adds; a decoded token, by reading the cache.

#include "ops/attention.h"

#include <algorithm>
#include <array>
#include <cfloat>
#include <cmath>
#include <vector>

#include "cpu/attention_split.h"
#include "cpu/attention_tile.h"
#include "cpu/backend.h"
#include "cpu/kv_view.h"
#include "cpu/simd_targets.h"
#include "cpu/types.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/attention.cc"
#include <hwy/foreach_target.h>

#include "cpu/attention_blocks.h"
#include "cpu/attention_position.h"

HWY_BEFORE_NAMESPACE();
namespace mixtral::cpu::HWY_NAMESPACE {
namespace {

template <class T>
void attend(const AttentionTile& t, const TileState& s) {
  const int64_t rows = t.positions * t.heads, width = t.width, stride = padded(width);
  const int64_t last = t.first + t.positions - 1;
  const int64_t first = first_key(t);
  const Rows<T> keys = key_rows<T>(t), values = value_rows<T>(t, 0);
  for (int64_t block = first / kKeys * kKeys; block <= last; block += kKeys) {
    pack_transposed(keys, block, first, last, width, s.room, s.keys);
    pack_rows(values, block, first, last, width, 1, s.values);
    for (int64_t row = 0; row < rows; row += kTileRows) {
      const int64_t count = std::min<int64_t>(kTileRows, rows - row);
      const int64_t top = t.first + (row + count - 1) / t.heads;  // the last key that a row sees
      if (top < block) continue;
      // The first row's window is the earliest.
      if (t.window > 0 && t.first + row / t.heads - t.window + 1 >= block + kKeys) continue;
      const int64_t visible = std::min(kKeys, top - block + 1);
      const int64_t groups = (visible + kLanes - 1) / kLanes;
      multiply({.a = s.query + row * stride,
                .a_row = stride,
                .a_step = 1,
                .b = s.keys,
                .b_stride = kKeys,
                .c = s.scores,
                .c_stride = kKeys,
                .depth = width},
               count, groups * kLanes);
      float factor[kLanes];
      online_softmax(t, s, row, count, block, groups, factor);
      multiply({.a = s.scores,
                .a_row = kKeys,
                .a_step = 1,
                .b = s.values,
                .b_stride = stride,
                .c = s.out + row * stride,
                .c_stride = stride,
                .depth = visible,
                .start = Start::scaled_c,
                .factor = factor},
               count, stride);
    }
  }
}

template <class T>
void compute_tile(const AttentionTile& t, RowsAhead* ahead) {
  const int64_t rows = t.positions * t.heads, width = t.width, stride = padded(width);
  TileState s;
  s.query = t.scratch;
  s.out = s.query + rows * stride;
  s.keys = s.out + rows * stride;
  s.values = s.keys + stride * kKeys;
  s.scores = s.values + kKeys * stride;
  s.score_stride = kKeys;
  s.total = s.scores + kTileRows * kKeys;
  s.largest = s.total + rows * kLanes;
  s.room = s.largest + padded(rows) + kLanes;
  pack_heads(t.query, t.query_stride, t.positions, t.heads, width, t.scale * kLog2E, s.query);
  std::fill(s.out, s.out + rows * stride, 0.f);
  std::fill(s.total, s.total + rows * kLanes, 0.f);
  // Finite, so that a row that has seen no key yet is scaled by 1 and later by 0, not by NaN.
  std::fill(s.largest, s.largest + padded(rows) + kLanes, -FLT_MAX);
  if (ahead)
    attend_position<T>(t, s, *ahead);
  else
    attend<T>(t, s);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t position = row / t.heads, head = row % t.heads;
    const float total = lane_sum(load(s.total + row * kLanes));
    const Floats inverse = broadcast(1 / total);
    const float* from = s.out + row * stride;
    float* to = t.out + position * t.out_stride + head * width;
    for_lanes(width, [&](int64_t i, int64_t count)
                         HWY_ATTR { store_n(load(from + i) * inverse, to + i, count); });
    if (t.log_sum == nullptr) continue;
    t.log_sum[position * t.log_sum_stride + head] = static_cast<float>(
        static_cast<double>(s.largest[row]) * M_LN2 + std::log(static_cast<double>(total)));
  }
}

/// Some positions of one head.
void attention_tile(const AttentionTile& t) {
  with_element(t.type, [&]<class T>(T) HWY_ATTR { compute_tile<T>(t, nullptr); });
}

/// A single position in each of some tiles, one after another.
void attention_positions(const AttentionTile* tiles, int64_t count) {
  RowsAhead ahead(tiles, count);
  with_element(tiles->type, [&]<class T>(T) HWY_ATTR {
    for (int64_t i = 0; i < count; ++i) compute_tile<T>(tiles[i], &ahead);
  });
}

int64_t tile_scratch(int64_t rows, int64_t width) {
  const int64_t stride = padded(width);
  return 2 * rows * stride + 2 * stride * kKeys + kTileRows * kKeys + rows * kLanes + padded(rows) +
         kLanes + 4 * stride;
}

void rotate_rows(const ops::Rope& op, int64_t begin, int64_t end) {
  const int64_t width = op.heads.width, half = width / 2, columns = op.heads.columns();
  const int64_t heads = op.heads.query + op.heads.kv;
  const Floats sign = broadcast(op.inverse ? -1.f : 1.f);
  for (int64_t n = begin; n < end; ++n) {
    if (op.positions.as<int32_t>()[n] == ops::kPadding) continue;
    const float* cosines = op.table.as<float>() + op.positions.as<int32_t>()[n] * width;
    const float* sines = cosines + half;
    float* row = op.qkv.as<float>() + n * columns;
    for_lanes(half, [&](int64_t i, int64_t count) HWY_ATTR {
      const Floats c = load_n(cosines + i, count), s = load_n(sines + i, count) * sign;
      for (int64_t head = 0; head < heads; ++head) {
        float* first = row + head * width + i;
        float* second = first + half;
        const Floats a = load_n(first, count), b = load_n(second, count);
        store_n(subtract_product(a * c, b, s), first, count);
        store_n(multiply_add(a, s, b * c), second, count);
      }
    });
  }
}

}  // namespace
}  // namespace mixtral::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mixtral::cpu {
namespace {

HWY_EXPORT(attention_tile);
HWY_EXPORT(attention_positions);
HWY_EXPORT(tile_scratch);
HWY_EXPORT(rotate_rows);

/// Tokens [token, token + count) at positions [first, first + count) of a sequence: the one that
/// begins at token `sequence`, or row `sequence` of a cache's table.
struct Run {
  int64_t token, first, count, sequence;
};

// Runs a thread, from which one thread computes all groups of a run.
constexpr int64_t kRunsPerThread = 4;
// Of a run's keys and values in all groups: they stay in the L2 cache.
constexpr int64_t kMaxFetch = 256 << 10;  // bytes

/// Asks for the keys and values of all groups that a run reads. They lie in order within a page, of
/// which each group alone takes small pieces.
void prefetch_run(const ops::KvView& cache, const Run& run, int64_t window) {
  const int64_t size = cache.page_tokens();
  const int64_t page_bytes =
      cache.keys.dim(2) * cache.keys.dim(3) * size * size_of(cache.keys.dtype());
  const int64_t first = window > 0 ? std::max<int64_t>(0, run.first - window + 1) / size : 0;
  const int64_t last = (run.first + run.count - 1) / size;
  if (2 * (last - first + 1) * page_bytes > kMaxFetch) return;
  const int32_t* pages = cache.table.as<int32_t>() + run.sequence * cache.table.dim(1);
  for (int64_t page = first; page <= last; ++page)
    for (const Tensor* part : {&cache.keys, &cache.values}) {
      const char* from = static_cast<const char*>(part->data()) + pages[page] * page_bytes;
      for (int64_t i = 0; i < page_bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
    }
}

/// Positions of a tile of the forward pass.
int64_t tile_positions(const ops::Heads& heads) {
  return std::max<int64_t>(1, kForwardRows / (heads.query / heads.kv));
}

}  // namespace

void CpuBackend::run(const ops::Rope& op) {
  expect_f32(op.kName, {op.qkv, op.table});
  const int64_t rows = op.table.dim(0);
  for (int32_t p : op.positions.span<int32_t>())
    CHECK(p == ops::kPadding || (p >= 0 && p < rows), "a position outside the rope table");
  pool_.for_ranges(op.qkv.dim(0), row_grain(op.heads.columns()), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(rotate_rows)(op, begin, end);
  });
}

void CpuBackend::run(const ops::Attention& op) {
  expect_f32(op.kName, {op.qkv, op.out, op.log_sum});
  const ops::Heads& heads = op.heads;
  const int64_t width = heads.width, columns = heads.columns(), shared = heads.query / heads.kv;
  const int64_t step = tile_positions(heads), sequences = op.sequence_starts.dim(0) - 1;
  const int32_t* starts = op.sequence_starts.as<int32_t>();
  int64_t count = 0;
  for (int64_t s = 0; s < sequences; ++s) count += (starts[s + 1] - starts[s] + step - 1) / step;
  Run* runs = static_cast<Run*>(shared_.get(0, count * int64_t{sizeof(Run)}));
  int64_t filled = 0;
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t length = starts[s + 1] - starts[s];
    // The last tiles see the most keys: they go first, so that no thread is left with one at the
    // end.
    for (int64_t first = (length - 1) / step * step; length > 0 && first >= 0; first -= step)
      runs[filled++] = {starts[s] + first, first, std::min(step, length - first), starts[s]};
  }
  const int64_t scratch =
      HWY_DYNAMIC_DISPATCH(tile_scratch)(step * shared, width) * int64_t{sizeof(float)};
  pool_.for_each(count * heads.kv, [&](int64_t item, int thread) {
    const Run& run = runs[item / heads.kv];
    const int64_t group = item % heads.kv;
    const float* token = op.qkv.as<float>() + run.token * columns;
    const float* start = op.qkv.as<float>() + run.sequence * columns;
    HWY_DYNAMIC_DISPATCH(attention_tile)
    ({.query = token + group * shared * width,
      .query_stride = columns,
      .first = run.first,
      .positions = run.count,
      .keys = start + (heads.query + group) * width,
      .values = start + (heads.query + heads.kv + group) * width,
      .type = ops::CacheType::f32,
      .stride = columns,
      .out = op.out.as<float>() + (run.token * heads.query + group * shared) * width,
      .out_stride = heads.query * width,
      .log_sum =
          op.log_sum ? op.log_sum.as<float>() + run.token * heads.query + group * shared : nullptr,
      .log_sum_stride = heads.query,
      .heads = shared,
      .width = width,
      .window = op.window,
      .scale = static_cast<float>(op.scale),
      .scratch = static_cast<float*>(scratch_.get(thread, scratch))});
  });
}

void CpuBackend::run(const ops::CachedAttention& op) {
  expect_f32(op.kName, {op.qkv, op.out});
  expect_cache_type(op.kName, op.cache);
  const ops::Heads& heads = op.heads;
  const int64_t width = heads.width, columns = heads.columns(), shared = heads.query / heads.kv;
  const int64_t tokens = op.qkv.dim(0), step = tile_positions(heads);
  const int32_t* positions = op.positions.as<int32_t>();
  const int32_t* rows = op.rows.as<int32_t>();
  Run* runs = static_cast<Run*>(shared_.get(0, tokens * int64_t{sizeof(Run)}));
  int64_t count = 0;
  for (int64_t n = 0; n < tokens; ++n) {
    const int64_t p = positions[n];
    if (p == ops::kPadding) {
      std::fill_n(op.out.as<float>() + n * op.out.dim(1), op.out.dim(1), 0.f);
      continue;
    }
    check_pages(op.cache, rows[n], op.window > 0 ? std::max<int64_t>(0, p - op.window + 1) : 0, p);
    Run* last = count > 0 ? &runs[count - 1] : nullptr;
    if (last != nullptr && last->count < step && last->token + last->count == n &&
        last->sequence == rows[n] && last->first + last->count == p)
      ++last->count;
    else
      runs[count++] = {n, p, 1, rows[n]};
  }
  const int64_t element = size_of(op.cache.keys.dtype());
  const int page_shift = std::countr_zero(static_cast<uint64_t>(op.cache.page_tokens()));
  const bool coded = op.cache.coded();
  const ops::CodedPages pages = coded ? coded_pages(op.cache, heads) : ops::CodedPages{};
  const auto tile_of = [&](const Run& run, int64_t group) {
    const int64_t offset = group * width * element;
    const auto scales = [&](const Tensor& part) {
      return coded ? part.as<uint8_t>() + pages.scale(0, 0, group) : nullptr;
    };
    return AttentionTile{
        .query = op.qkv.as<float>() + run.token * columns + group * shared * width,
        .query_stride = columns,
        .first = run.first,
        .positions = run.count,
        .keys = static_cast<const std::byte*>(op.cache.keys.data()) + offset,
        .values = static_cast<const std::byte*>(op.cache.values.data()) + offset,
        .type = op.cache.type,
        .stride = heads.kv * width,
        .pages = op.cache.table.as<int32_t>() + run.sequence * op.cache.table.dim(1),
        .page_shift = page_shift,
        .page_rest = coded ? pages.page_bytes() - pages.scales_at() : 0,
        .key_scales = scales(op.cache.keys),
        .value_scales = scales(op.cache.values),
        .out = op.out.as<float>() + (run.token * heads.query + group * shared) * width,
        .out_stride = heads.query * width,
        .heads = shared,
        .width = width,
        .window = op.window,
        .scale = static_cast<float>(op.scale)};
  };
  // Too few tiles for all threads, and keys enough to divide.
  const bool split =
      count * heads.kv < pool_.size() &&
      std::any_of(
          runs, runs + count, [&](const Run& run) { return run.first >= kLeastSplitKeys; }) &&
      std::all_of(runs, runs + count, [](const Run& run) { return run.count == 1; });
  if (split) {
    std::vector<AttentionTile> tiles;
    tiles.reserve(static_cast<size_t>(count * heads.kv));
    for (int64_t i = 0; i < count * heads.kv; ++i)
      tiles.push_back(tile_of(runs[i / heads.kv], i % heads.kv));
    return attend_split(tiles, pool_, scratch_, shared_);
  }
  const int64_t scratch =
      HWY_DYNAMIC_DISPATCH(tile_scratch)(step * shared, width) * int64_t{sizeof(float)};
  // Groups [begin, end) of a run.
  const auto attend_groups = [&](const Run& run, int64_t begin, int64_t end, int thread) {
    auto* room = static_cast<float*>(scratch_.get(thread, scratch));
    constexpr int64_t kAtOnce = 16;
    std::array<AttentionTile, kAtOnce> tiles;
    while (begin < end) {
      const int64_t groups = std::min(kAtOnce, end - begin);
      for (int64_t i = 0; i < groups; ++i) {
        AttentionTile& tile = tiles[static_cast<size_t>(i)] = tile_of(run, begin + i);
        tile.scratch = room;
        if (run.count > 1) HWY_DYNAMIC_DISPATCH(attention_tile)(tile);
      }
      if (run.count == 1) HWY_DYNAMIC_DISPATCH(attention_positions)(tiles.data(), groups);
      begin += groups;
    }
  };
  // From the last run: the tiles of a long prompt that see the most keys go first.
  if (count >= kRunsPerThread * pool_.size())
    return pool_.for_each(count, [&](int64_t item, int thread) {
      const Run& run = runs[count - 1 - item];
      if (run.count > 1) prefetch_run(op.cache, run, op.window);
      attend_groups(run, 0, heads.kv, thread);
    });
  // A single position's groups go to threads in equal parts, which read neighbouring memory.
  const bool alone = count == 1 && runs[0].count == 1;
  const int64_t parts = alone ? std::min<int64_t>(heads.kv, pool_.size()) : heads.kv;
  pool_.for_each(count * parts, [&](int64_t item, int thread) {
    const int64_t part = item % parts;
    attend_groups(runs[count - 1 - item / parts], heads.kv * part / parts,
                  heads.kv * (part + 1) / parts, thread);
  });
}

}  // namespace mixtral::cpu
#endif  // HWY_ONCE
