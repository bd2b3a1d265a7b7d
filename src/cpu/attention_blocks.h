// What the forward and the backward pass of attention share: small matrix products held in
// registers, and packing of keys and values.
//
// Compiled once for each instruction set: include it from a Highway translation unit only.

#if defined(MIXTRAL_CPU_ATTENTION_BLOCKS_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MIXTRAL_CPU_ATTENTION_BLOCKS_H_
#undef MIXTRAL_CPU_ATTENTION_BLOCKS_H_
#else
#define MIXTRAL_CPU_ATTENTION_BLOCKS_H_
#endif

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

#include "cpu/attention_tile.h"
#include "cpu/simd.h"
#include "cpu/simd_math.h"

HWY_BEFORE_NAMESPACE();
namespace mixtral::cpu::HWY_NAMESPACE {
namespace {

// A register tile is kTileRows × 2 vectors: with 32 registers 8 × 2 sums cover the latency of the
// multiply-adds and leave room for operands, with 16 registers 6 × 2 do.
#if HWY_TARGET == HWY_AVX2
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 8;
#endif

/// What a product's sums start from.
enum class Start : uint8_t { zero, c, scaled_c };

/// c[i, j] = start + Σ_k a(i, k) · b[k, j], one chain of multiply-adds in order of k.
struct Product {
  const float* a = nullptr;  // a(i, k) at a[i · a_row + k · a_step]
  int64_t a_row = 0, a_step = 0;
  const float* b = nullptr;  // [depth, columns], a multiple of 16 columns
  int64_t b_stride = 0;
  float* c = nullptr;
  int64_t c_stride = 0;
  int64_t depth = 0;
  Start start = Start::zero;
  const float* factor = nullptr;  // of row i of c, with scaled_c
};

template <int kM, int kVectors>
void product_tile(const Product& p, int64_t row, int64_t column) {
  const FloatTag tag;
  hn::Vec<FloatTag> sum[kM][kVectors];
  float* c = p.c + row * p.c_stride + column;
  HWY_UNROLL(16)
  for (int i = 0; i < kM; ++i) {
    HWY_UNROLL(4)
    for (int j = 0; j < kVectors; ++j) {
      if (p.start == Start::zero) {
        sum[i][j] = hn::Zero(tag);
      } else {
        sum[i][j] = hn::LoadU(tag, c + i * p.c_stride + j * kPartLanes);
        if (p.start == Start::scaled_c)
          sum[i][j] = hn::Mul(sum[i][j], hn::Set(tag, p.factor[row + i]));
      }
    }
  }
  const float* a[kM];
  for (int i = 0; i < kM; ++i) a[i] = p.a + (row + i) * p.a_row;
  const float* b = p.b + column;
  int64_t at = 0;
  for (int64_t k = 0; k < p.depth; ++k, at += p.a_step, b += p.b_stride) {
    hn::Vec<FloatTag> y[kVectors];
    HWY_UNROLL(4)
    for (int j = 0; j < kVectors; ++j) y[j] = hn::LoadU(tag, b + j * kPartLanes);
    HWY_UNROLL(16)
    for (int i = 0; i < kM; ++i) {
      const auto x = hn::Set(tag, a[i][at]);
      HWY_UNROLL(4)
      for (int j = 0; j < kVectors; ++j) sum[i][j] = hn::MulAdd(x, y[j], sum[i][j]);
    }
  }
  HWY_UNROLL(16)
  for (int i = 0; i < kM; ++i) {
    HWY_UNROLL(4)
    for (int j = 0; j < kVectors; ++j)
      hn::StoreU(sum[i][j], tag, c + i * p.c_stride + j * kPartLanes);
  }
}

template <int kM>
void product_rows(const Product& p, int64_t row, int64_t columns) {
  int64_t j = 0;
  // Few rows need more columns for as many independent sums.
  if constexpr (kM <= 2)
    for (; j + 4 * kPartLanes <= columns; j += 4 * kPartLanes) product_tile<kM, 4>(p, row, j);
  for (; j + 2 * kPartLanes <= columns; j += 2 * kPartLanes) product_tile<kM, 2>(p, row, j);
  if (j < columns) product_tile<kM, 1>(p, row, j);
}

/// Rows [0, rows) and columns [0, columns) of a product; columns is a multiple of 16.
HWY_NOINLINE void multiply(const Product& p, int64_t rows, int64_t columns) {
  int64_t i = 0;
  for (; i + kTileRows <= rows; i += kTileRows) product_rows<kTileRows>(p, i, columns);
  for (; i + 4 <= rows; i += 4) product_rows<4>(p, i, columns);
  for (; i + 2 <= rows; i += 2) product_rows<2>(p, i, columns);
  if (i < rows) product_rows<1>(p, i, columns);
}

/// Columns as they are padded in scratch memory.
constexpr int64_t padded(int64_t columns) { return (columns + kLanes - 1) / kLanes * kLanes; }

template <class T>
inline constexpr bool is_code = std::is_same_v<T, int8_t> || std::is_same_v<T, E4m3>;

/// Rows of keys or of values by position: one after another, or in pages of 2^shift positions
/// (see AttentionTile).
template <class T>
struct Rows {
  const T* data;  // of position 0, or of page 0
  int64_t stride;
  const int32_t* pages = nullptr;  // the page of each 2^shift positions; or null: no pages
  int shift = 0;
  int64_t page_rest = 0;
  const uint8_t* scales = nullptr;  // of codes

  HWY_INLINE int64_t page_elements() const { return (stride << shift) + page_rest; }
  HWY_INLINE int64_t within(int64_t position) const {
    return position & ((int64_t{1} << shift) - 1);
  }
  /// What the row's elements are multiplied by.
  HWY_INLINE float scale(int64_t position) const {
    float scale = 1;
    if constexpr (is_code<T>)
      std::memcpy(&scale,
                  scales + pages[position >> shift] * page_elements() +
                      within(position) * static_cast<int64_t>(sizeof scale),
                  sizeof scale);
    return scale;
  }
  HWY_INLINE const T* operator[](int64_t position) const {
    if (pages == nullptr) return data + position * stride;
    return data + pages[position >> shift] * page_elements() + within(position) * stride;
  }
  /// Asks for a row that is needed soon. Rows lie far apart (other heads are between them), which
  /// the processor's own prefetching does not follow.
  HWY_INLINE void prefetch(int64_t position, int64_t width) const {
    constexpr int64_t kLine = 64 / int64_t{sizeof(T)};
    const T* row = (*this)[position];
    for (int64_t i = 0; i < width; i += kLine) __builtin_prefetch(row + i);
  }
};

constexpr int64_t kAhead = 16;  // rows that are asked for before they are needed

/// packed[j, ·] = rows[block + j] as floats, padded with zeros, for the positions from `first` to
/// `last`; zeros for the others of the block.
template <class T>
void pack_rows(const Rows<T>& rows, int64_t block, int64_t first, int64_t last, int64_t width,
               float factor, float* packed) {
  const int64_t stride = padded(width);
  for (int64_t j = 0; j < kKeys; ++j, packed += stride) {
    const int64_t position = block + j;
    if (position < first || position > last) {
      std::fill(packed, packed + stride, 0.f);
      continue;
    }
    rows.prefetch(std::min(position + kAhead, last), width);
    const T* row = rows[position];
    const Floats scale = broadcast(factor * rows.scale(position));
    for_lanes(width, [&](int64_t i, int64_t count)
                         HWY_ATTR { store(load_n(row + i, count) * scale, packed + i); });
  }
}

/// packed[i · kKeys + j] = row j's element i, for four rows j.
HWY_INLINE void transpose_four(const float* const row[4], int64_t width, float* packed) {
  int64_t i = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::CappedTag<float, 4> tag;
  for (; i + 4 <= width; i += 4) {
    const auto r0 = hn::LoadU(tag, row[0] + i), r1 = hn::LoadU(tag, row[1] + i);
    const auto r2 = hn::LoadU(tag, row[2] + i), r3 = hn::LoadU(tag, row[3] + i);
    const auto a = hn::InterleaveLower(tag, r0, r2), b = hn::InterleaveLower(tag, r1, r3);
    const auto c = hn::InterleaveUpper(tag, r0, r2), d = hn::InterleaveUpper(tag, r1, r3);
    hn::StoreU(hn::InterleaveLower(tag, a, b), tag, packed + i * kKeys);
    hn::StoreU(hn::InterleaveUpper(tag, a, b), tag, packed + (i + 1) * kKeys);
    hn::StoreU(hn::InterleaveLower(tag, c, d), tag, packed + (i + 2) * kKeys);
    hn::StoreU(hn::InterleaveUpper(tag, c, d), tag, packed + (i + 3) * kKeys);
  }
#endif
  for (; i < width; ++i)
    for (int j = 0; j < 4; ++j) packed[i * kKeys + j] = row[j][i];
}

/// packed[i, j] = rows[block + j][i] as floats; zeros for positions outside first .. last. `room`
/// is for four padded rows.
template <class T>
void pack_transposed(const Rows<T>& rows, int64_t block, int64_t first, int64_t last, int64_t width,
                     float* room, float* packed) {
  const int64_t stride = padded(width);
  for (int64_t j = 0; j < kKeys; j += 4) {
    const float* row[4];
    for (int64_t r = 0; r < 4; ++r) {
      const int64_t position = block + j + r;
      float* own = room + r * stride;
      row[r] = own;
      rows.prefetch(std::clamp(position + kAhead, first, last), width);
      if (position < first || position > last) {
        std::fill(own, own + stride, 0.f);
      } else if constexpr (std::is_same_v<T, float>) {
        row[r] = rows[position];
      } else {
        const T* from = rows[position];
        if constexpr (is_code<T>) {
          const Floats scale = broadcast(rows.scale(position));
          for_lanes(width, [&](int64_t i, int64_t count)
                               HWY_ATTR { store(load_n(from + i, count) * scale, own + i); });
        } else {
          for_lanes(width, [&](int64_t i, int64_t count)
                               HWY_ATTR { store(load_n(from + i, count), own + i); });
        }
      }
    }
    transpose_four(row, width, packed + j);
  }
}

/// Rows of a tile: heads [0, heads) of each of some positions, scaled and padded with zeros.
HWY_INLINE void pack_heads(const float* from, int64_t stride, int64_t positions, int64_t heads,
                           int64_t width, float factor, float* packed) {
  const Floats scale = broadcast(factor);
  for (int64_t p = 0; p < positions; ++p) {
    for (int64_t h = 0; h < heads; ++h, packed += padded(width)) {
      const float* row = from + p * stride + h * width;
      for_lanes(width, [&](int64_t i, int64_t count)
                           HWY_ATTR { store(load_n(row + i, count) * scale, packed + i); });
    }
  }
}

/// Scores of keys [16 g, 16 g + 16) of a block, −∞ where the key is not one of `low` .. `high`.
HWY_INLINE Floats mask_scores(const Floats& scores, int64_t g, int64_t low, int64_t high) {
  if (low <= g * kLanes && high >= g * kLanes + kLanes - 1) return scores;
  const Words key = count_up(static_cast<uint32_t>(g * kLanes));
  const Floats none = broadcast(-HUGE_VALF);
  // Relative positions fit 32 bits once they are cut to the block.
  const auto begin = static_cast<uint32_t>(std::clamp<int64_t>(low, 0, kKeys));
  const auto end = static_cast<uint32_t>(std::clamp<int64_t>(high + 1, 0, kKeys));
  const Floats upper = select(less_signed(key, broadcast_word(end)), scores, none);
  return select(less_signed(key, broadcast_word(begin)), none, upper);
}

/// A tile's working memory, and what its rows have come to.
struct TileState {
  float* query;          // [rows, padded width], scaled by scale · log₂ e
  float* out;            // [rows, padded width]: Σ p v
  float* keys;           // [width, kKeys]
  float* values;         // [kKeys, padded width]
  float* scores;         // [kTileRows, kKeys]
  int64_t score_stride;  // from one row of scores to the next
  float* total;          // [rows, 16]: Σ p, by lane
  float* largest;        // [rows]: of the scores so far
  float* room;           // [4, padded width]
};

/// The online softmax of `rows` rows of scores from row `row` of the tile: turns them into weights
/// relative to the new maximum, and gives each row's factor for what was summed before.
[[maybe_unused]] HWY_NOINLINE void online_softmax(const AttentionTile& t, const TileState& s,
                                                  int64_t row, int64_t rows, int64_t block,
                                                  int64_t groups, float* factor) {
  float newest[kLanes];
  std::copy(s.largest + row, s.largest + row + kLanes, newest);
  for (int64_t i = 0; i < rows; ++i) {
    float* scores = s.scores + i * s.score_stride;
    const int64_t high = t.first + (row + i) / t.heads - block;
    const int64_t low = t.window > 0 ? high - t.window + 1 : 0;
    Floats most = broadcast(-HUGE_VALF);
    for (int64_t g = 0; g < groups; ++g) {
      const Floats masked = mask_scores(load(scores + g * kLanes), g, low, high);
      store(masked, scores + g * kLanes);
      most = maximum(masked, most);
    }
    newest[i] = std::max(newest[i], lane_max(most));
  }
  const Floats factors = exponential2(load(s.largest + row) - load(newest));
  store(factors, factor);
  std::copy(newest, newest + rows, s.largest + row);
  for (int64_t i = 0; i < rows; ++i) {
    float* scores = s.scores + i * s.score_stride;
    const Floats shift = broadcast(newest[i]);
    Floats sum = broadcast(0);
    for (int64_t g = 0; g < groups; ++g) {
      const Floats p = exponential2(load(scores + g * kLanes) - shift);
      store(p, scores + g * kLanes);
      sum = sum + p;
    }
    float* total = s.total + (row + i) * kLanes;
    store(multiply_add(load(total), broadcast(factor[i]), sum), total);
  }
}

/// Calls f with an element of the type that a tile's keys and values have.
template <class F>
HWY_INLINE void with_element(ops::CacheType type, const F& f) {
  if (type == ops::CacheType::f32) return f(float{});
  if (type == ops::CacheType::bf16) return f(bf16{});
  if (type == ops::CacheType::int8) return f(int8_t{});
  if (type == ops::CacheType::fp8) return f(E4m3{});
  f(f16{});
}
/// Rows of a tile's keys and of its values, from column `column` of the head on.
template <class T>
HWY_INLINE Rows<T> key_rows(const AttentionTile& t) {
  return {
      static_cast<const T*>(t.keys), t.stride, t.pages, t.page_shift, t.page_rest, t.key_scales};
}
template <class T>
HWY_INLINE Rows<T> value_rows(const AttentionTile& t, int64_t column) {
  return {static_cast<const T*>(t.values) + column,
          t.stride,
          t.pages,
          t.page_shift,
          t.page_rest,
          t.value_scales};
}

constexpr float kLog2E = 0x1.715476p0f;
constexpr float kLn2 = 0x1.62e43p-1f;

}  // namespace
}  // namespace mixtral::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
