// Attention of a single position, as a decoded token's: bound by reading the cache, so that its
// keys and values are read where they are and asked for ahead.
//
// Compiled once for each instruction set: include it from a Highway translation unit only.

#if defined(MIXTRAL_CPU_ATTENTION_POSITION_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MIXTRAL_CPU_ATTENTION_POSITION_H_
#undef MIXTRAL_CPU_ATTENTION_POSITION_H_
#else
#define MIXTRAL_CPU_ATTENTION_POSITION_H_
#endif

#include <algorithm>
#include <cstddef>
#include <type_traits>

#include "cpu/attention_blocks.h"
#include "cpu/attention_tile.h"
#include "cpu/simd.h"

HWY_BEFORE_NAMESPACE();
namespace mixtral::cpu::HWY_NAMESPACE {
namespace {

/// The first key that a tile's first position sees.
int64_t first_key(const AttentionTile& t) {
  return t.window > 0 ? std::max<int64_t>(0, t.first - t.window + 1) : 0;
}

/// Asks for the rows that are needed soon, in the order in which single positions use them: a
/// block's keys, its values, the next block's, and those of the next tile. It counts in bytes, so
/// that its users are compiled once for all types of elements.
class RowsAhead {
 public:
  RowsAhead(const AttentionTile* tiles, int64_t count) : tile_(tiles), end_(tiles + count) {
    begin_tile();
  }
  RowsAhead(const RowsAhead&) = delete;

  /// Asks for rows beside the use of as many, one or, until they are far enough ahead, two.
  HWY_INLINE void follow() {
    fetch();
    if (distance_ == kDistance) return;
    fetch();
    ++distance_;
  }

 private:
  /// Into the L2 cache: requests for the L1 cache are soon too many, and then dropped.
  HWY_INLINE void fetch() {
    if (tile_ == end_) return;
    const std::byte* row = (values_ ? value_rows_ : key_rows_)[position_];
    for (int64_t i = 0; i < row_bytes_; i += 64) __builtin_prefetch(row + i, 0, 2);
    if (++position_ < block_end_) return;
    values_ = !values_;
    if (!values_) {
      block_ = block_end_;
      if (block_ > tile_->first) {
        ++tile_;
        return begin_tile();
      }
      block_end_ = std::min(block_ + kKeys, tile_->first + 1);
    }
    position_ = block_;
  }

  static constexpr int64_t kDistance = 24;  // rows

  void begin_tile() {
    if (tile_ == end_) return;
    const int64_t size = size_of(stored_dtype(tile_->type));
    const auto rows_of = [&](const void* first) -> Rows<std::byte> {
      return {static_cast<const std::byte*>(first), tile_->stride * size, tile_->pages,
              tile_->page_shift, tile_->page_rest * size};
    };
    key_rows_ = rows_of(tile_->keys);
    value_rows_ = rows_of(tile_->values);
    row_bytes_ = tile_->width * size;
    position_ = block_ = first_key(*tile_);
    block_end_ = std::min(block_ / kKeys * kKeys + kKeys, tile_->first + 1);
  }

  const AttentionTile *tile_, *end_;
  int64_t distance_ = 0;
  Rows<std::byte> key_rows_{}, value_rows_{};
  int64_t row_bytes_ = 0;
  bool values_ = false;
  int64_t block_ = 0, block_end_ = 0, position_ = 0;
};

/// Where the rows of some positions lie as floats, whose number in a row is padded: in place, or
/// else in `room`, [positions, padded width].
template <class T>
HWY_INLINE void find_rows(const Rows<T>& rows, int64_t begin, int64_t end, int64_t width,
                          float* room, const float** found) {
  const int64_t stride = padded(width);
  if constexpr (std::is_same_v<T, float>) {
    if (stride == width) {
      for (int64_t p = begin; p < end; ++p) *found++ = rows[p];
      return;
    }
  }
  for (int64_t p = begin; p < end; ++p, room += stride) {
    const T* from = rows[p];
    const Floats scale = broadcast(rows.scale(p));
    for_lanes(width, [&](int64_t i, int64_t count)
                         HWY_ATTR { store(load_n(from + i, count) * scale, room + i); });
    *found++ = room;
  }
}

#if HWY_TARGET != HWY_SCALAR
/// Four floats of each of as many rows as a vector has blocks; the rows are every fourth.
template <class D>
HWY_INLINE hn::Vec<D> load_pieces(D d, const float* const* row, int64_t at) {
  if constexpr (hn::MaxLanes(d) <= 4) {
    return hn::LoadU(d, *row + at);
  } else {
    const hn::Half<D> half;
    constexpr int64_t kRows = static_cast<int64_t>(hn::MaxLanes(half));
    return hn::Combine(d, load_pieces(half, row + kRows, at), load_pieces(half, row, at));
  }
}
#endif

/// Elements [i, i + 4) of 16 rows, transposed.
HWY_INLINE void load_columns(const float* const* row, int64_t i, Floats (&column)[4]) {
#if HWY_TARGET == HWY_SCALAR
  for (int64_t c = 0; c < 4; ++c)
    for (int r = 0; r < kLanes; ++r) column[c].part[r] = hn::Set(FloatTag(), row[r][i + c]);
#else
  const FloatTag tag;
  HWY_UNROLL(4)
  for (int p = 0; p < kParts; ++p) {
    const float* const* first = row + p * kPartLanes;
    const auto r0 = load_pieces(tag, first, i), r1 = load_pieces(tag, first + 1, i);
    const auto r2 = load_pieces(tag, first + 2, i), r3 = load_pieces(tag, first + 3, i);
    const auto a = hn::InterleaveLower(tag, r0, r2), b = hn::InterleaveLower(tag, r1, r3);
    const auto c = hn::InterleaveUpper(tag, r0, r2), d = hn::InterleaveUpper(tag, r1, r3);
    column[0].part[p] = hn::InterleaveLower(tag, a, b);
    column[1].part[p] = hn::InterleaveUpper(tag, a, b);
    column[2].part[p] = hn::InterleaveLower(tag, c, d);
    column[3].part[p] = hn::InterleaveUpper(tag, c, d);
  }
#endif
}

/// scores[h · kKeys + j] = Σ_i query[h · stride + i] · key[j][i] of 16 keys, one chain in order of
/// i.
template <int kHeads>
HWY_INLINE void score_keys(const float* query, int64_t stride, const float* const* key,
                           int64_t width, float* scores, RowsAhead* ahead) {
  // Spread over the loop: of many requests at once the processor drops some.
  const int64_t each = (4 * kLanes + width - 1) / width;
  int64_t rows = ahead ? kLanes : 0;
  Floats sum[kHeads];
  HWY_UNROLL(4)
  for (int h = 0; h < kHeads; ++h) sum[h] = broadcast(0);
  int64_t i = 0;
  for (; i + 4 <= width; i += 4) {
    for (int64_t r = 0; r < each && rows > 0; ++r, --rows) ahead->follow();
    Floats column[4];
    load_columns(key, i, column);
    HWY_UNROLL(4)
    for (int c = 0; c < 4; ++c) {
      HWY_UNROLL(4)
      for (int h = 0; h < kHeads; ++h)
        sum[h] = multiply_add(broadcast(query[h * stride + i + c]), column[c], sum[h]);
    }
  }
  for (; i < width; ++i) {
    float column[kLanes];
    for (int j = 0; j < kLanes; ++j) column[j] = key[j][i];
    HWY_UNROLL(4)
    for (int h = 0; h < kHeads; ++h)
      sum[h] = multiply_add(broadcast(query[h * stride + i]), load(column), sum[h]);
  }
  HWY_UNROLL(4)
  for (int h = 0; h < kHeads; ++h) store(sum[h], scores + h * kKeys);
}

/// out[h · stride + i] = factor[h] · out + Σ_j weights[h · kKeys + j] · value[j][i], one chain in
/// order of j, for kVectors vectors of columns.
template <int kHeads, int kVectors>
HWY_INLINE void add_values(const float* weights, const float* const* value, int64_t count,
                           const float* factor, int64_t column, float* out, int64_t stride,
                           RowsAhead* ahead) {
  const FloatTag tag;
  hn::Vec<FloatTag> sum[kHeads][kVectors];
  out += column;
  HWY_UNROLL(4)
  for (int h = 0; h < kHeads; ++h) {
    HWY_UNROLL(4)
    for (int v = 0; v < kVectors; ++v)
      sum[h][v] =
          hn::Mul(hn::LoadU(tag, out + h * stride + v * kPartLanes), hn::Set(tag, factor[h]));
  }
  for (int64_t j = 0; j < count; ++j) {
    if (ahead) ahead->follow();
    const float* row = value[j] + column;
    hn::Vec<FloatTag> y[kVectors];
    HWY_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) y[v] = hn::LoadU(tag, row + v * kPartLanes);
    HWY_UNROLL(4)
    for (int h = 0; h < kHeads; ++h) {
      const auto x = hn::Set(tag, weights[h * kKeys + j]);
      HWY_UNROLL(4)
      for (int v = 0; v < kVectors; ++v) sum[h][v] = hn::MulAdd(x, y[v], sum[h][v]);
    }
  }
  HWY_UNROLL(4)
  for (int h = 0; h < kHeads; ++h) {
    HWY_UNROLL(4)
    for (int v = 0; v < kVectors; ++v)
      hn::StoreU(sum[h][v], tag, out + h * stride + v * kPartLanes);
  }
}

/// Some heads of a position over a block of keys, whose rows are `key` (whole vectors of them) and
/// `value`.
struct BlockOfKeys {
  const float* const* key;
  const float* const* value;
  int64_t groups = 0;   // of 16 keys
  int64_t skipped = 0;  // keys in front of the window, at the block's beginning
  int64_t visible = 0;  // keys up to the last
};

template <int kHeads>
void score_block(const BlockOfKeys& b, const float* query, int64_t width, float* scores,
                 RowsAhead* ahead) {
  for (int64_t g = 0; g < b.groups; ++g)
    score_keys<kHeads>(query, padded(width), b.key + g * kLanes, width, scores + g * kLanes, ahead);
}

template <int kHeads>
void sum_block(const BlockOfKeys& b, const float* weights, const float* factor, int64_t width,
               float* out, RowsAhead* ahead) {
  const int64_t stride = padded(width), count = b.visible - b.skipped;
  const float* const* value = b.value + b.skipped;
  weights += b.skipped;
  int64_t column = 0;
  constexpr int kVectors = kHeads <= 2 ? 4 : 2;
  for (; column + kVectors * kPartLanes <= stride; column += kVectors * kPartLanes) {
    add_values<kHeads, kVectors>(weights, value, count, factor, column, out, stride, ahead);
    ahead = nullptr;
  }
  for (; column < stride; column += kPartLanes) {
    add_values<kHeads, 1>(weights, value, count, factor, column, out, stride, ahead);
    ahead = nullptr;
  }
}

/// Scores of all heads. Where there are 16 registers, fewer heads at once leave room for columns.
/// The first ones ask for rows ahead.
void score_heads(const BlockOfKeys& b, const float* query, int64_t heads, int64_t width,
                 float* scores, RowsAhead* ahead) {
  constexpr int kMost = kPartLanes == 8 ? 2 : 4;
  const int64_t stride = padded(width);
  int64_t h = 0;
  const auto take = [&]<int kHeads>(std::integral_constant<int, kHeads>) HWY_ATTR {
    for (; h + kHeads <= heads; h += kHeads, ahead = nullptr)
      score_block<kHeads>(b, query + h * stride, width, scores + h * kKeys, ahead);
  };
  take(std::integral_constant<int, kMost>());
  take(std::integral_constant<int, 2>());
  take(std::integral_constant<int, 1>());
}

void sum_heads(const BlockOfKeys& b, const float* weights, const float* factor, int64_t heads,
               int64_t width, float* out, RowsAhead* ahead) {
  const int64_t stride = padded(width);
  int64_t h = 0;
  const auto take = [&]<int kHeads>(std::integral_constant<int, kHeads>) HWY_ATTR {
    for (; h + kHeads <= heads; h += kHeads, ahead = nullptr)
      sum_block<kHeads>(b, weights + h * kKeys, factor + h, width, out + h * stride, ahead);
  };
  take(std::integral_constant<int, 4>());
  take(std::integral_constant<int, 2>());
  take(std::integral_constant<int, 1>());
}

/// As `attend`, of a single position, but keys and values are read where they are, because so few
/// rows do not repay packing them.
template <class T>
void attend_position(const AttentionTile& t, const TileState& s, RowsAhead& ahead) {
  const int64_t heads = t.heads, width = t.width, stride = padded(width), last = t.first;
  const int64_t first = first_key(t);
  const Rows<T> keys = key_rows<T>(t), values = value_rows<T>(t, 0);
  const float* key[kKeys];
  const float* value[kKeys];
  for (int64_t block = first / kKeys * kKeys; block <= last; block += kKeys) {
    const int64_t begin = std::max(block, first), end = std::min(block + kKeys, last + 1);
    BlockOfKeys b{.key = key, .value = value};
    b.skipped = begin - block;
    b.visible = end - block;
    b.groups = (b.visible + kLanes - 1) / kLanes;
    find_rows(keys, begin, end, width, s.keys, key + b.skipped);
    // Scores of the others are masked.
    std::fill(key, key + b.skipped, key[b.skipped]);
    std::fill(key + b.visible, key + b.groups * kLanes, key[b.skipped]);
    for (int64_t head = 0; head < heads; head += kTileRows) {
      const int64_t count = std::min<int64_t>(kTileRows, heads - head);
      RowsAhead* const follows = head == 0 ? &ahead : nullptr;
      score_heads(b, s.query + head * stride, count, width, s.scores, follows);
      float factor[kLanes];
      online_softmax(t, s, head, count, block, b.groups, factor);
      if (head == 0) find_rows(values, begin, end, width, s.values, value + b.skipped);
      sum_heads(b, s.scores, factor, count, width, s.out + head * stride, follows);
    }
  }
}

}  // namespace
}  // namespace mixtral::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
