#pragma once

#include "cuda/stream_codes.cuh"

namespace mixtral::cuda {

/// c += a b for 16 × 32 by 32 × 8, bytes; a has a sign or not.
template <bool is_signed>
__device__ inline void integer_mma(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (is_signed)
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// c += a b for 16 × 8 by 8 × 8 of tf32: numbers of f32 whose last 13 bits are taken as 0.
__device__ inline void tf32_mma(float (&c)[4], const float (&a)[4], float b0, float b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}

/// What a lane does with steps of integer codes: products with x in fixed point (fixed_rows.h).
/// The high and the low bytes of a row of x are two columns of tensor cores' products, so that a
/// tile has four rows. A lane gets both results of a row, and their sum is exact. What minima add
/// is one more product, of a step's minima and the sums of the columns that share them.
template <StreamCodec codec, class Shape, int far, int far_scales, bool wide>
class StreamIntegers : StreamCodes<codec, Shape, far, far_scales, wide> {
  using Base = StreamCodes<codec, Shape, far, far_scales, wide>;
  using Base::group_, Base::kGroups, Base::kScaleGroups, Base::lane_, Base::quarter_;
  using typename Base::Scales, typename Base::Traits;
  static constexpr int kPieceGroups = Shape::kPieceGroups;
  static constexpr int kStepSums = 2 * kGroups * Traits::kXSums;  // of x
  static constexpr int kFours = (kStepSums + 3) / 4;              // four sums each, at most

 public:
  using Base::row_at;
  static constexpr int kTileRows = 4;
  static constexpr int kXTiles = Shape::kRows / kTileRows;
  static constexpr bool kOneRow = false;

  /// A lane's numbers of x for a piece of a step. The sums are of all of the step, in its first.
  struct Columns {
    uint4 words[kPieceGroups][kXTiles];
    float scales[kPieceGroups][kXTiles];
    float2 sums[kFours > 0 ? kFours : 1][Shape::kRowTiles];
  };
  using X = Columns;

  /// Where a lane's rows of x are.
  struct Rows {
    uint32_t bytes[kXTiles], factors[kXTiles], sums[Shape::kRowTiles];

    template <class Task>
    __device__ Rows(const Task& op, int first_row, int count) {
      const int lane = static_cast<int>(threadIdx.x) % kWarp;
      const uint32_t groups = op.fixed.padded / 64;
      // What is computed of rows that are not there is not used.
      const auto row_of = [&](int row) {
        return static_cast<uint32_t>(first_row + min(row, count - 1));
      };
#pragma unroll
      for (int n = 0; n < kXTiles; ++n) {
        bytes[n] = 2 * row_of(n * kTileRows + lane / 8) * op.fixed.padded + lane % 8 * 16;
        factors[n] = row_of(n * kTileRows + lane % 4) * groups;
      }
      // Column 2q of a tile of sums is row q, and column 2q + 1 is row q + 4.
#pragma unroll
      for (int r = 0; r < Shape::kRowTiles; ++r)
        sums[r] = row_of(r * 8 + lane / 8 + lane / 4 % 2 * 4) * groups * Traits::kXSums +
                  min(lane % 4, kStepSums - 1);
    }
  };

  __device__ StreamIntegers(uint32_t, int block_shift) : Base(block_shift) {}

  /// Has the cache fetch what this warp will read of so many rows, at one time.
  template <class Task>
  __device__ static void warm(const Task& op, int first_row, int count, int warp, int steps) {
    constexpr int kSector = 32, kSectors = 4 * Traits::kColumns / kSector;  // of a step
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int of_row = steps * kSectors;
    const char* const from = op.fixed.bytes + int64_t{first_row} * 2 * op.fixed.padded;
#pragma unroll 4
    for (int i = lane; i < count * of_row; i += kWarp) {
      const int row = i / of_row, rest = i - row * of_row;
      const int step = warp + rest / kSectors * Shape::kWarps;
      fetch_word(from + int64_t{2 * row} * op.fixed.padded +
                 (step * kSectors + rest % kSectors) * kSector);
    }
  }

  template <int active, class Task>
  __device__ void load(const Task& op, const Rows& rows, int step, int piece, Columns& to) const {
    const auto group = static_cast<uint32_t>(2 * step * kGroups + piece * kPieceGroups);
#pragma unroll
    for (int n = 0; n < active; ++n) {
#pragma unroll
      for (int g = 0; g < kPieceGroups; ++g)
        to.words[g][n] =
            *reinterpret_cast<const uint4*>(op.fixed.bytes + rows.bytes[n] + (group + g) * 128);
      const uint32_t at = rows.factors[n] + group;
      float scales[kPieceGroups];
      cuda::load(op.fixed.scales + at, scales);
#pragma unroll
      for (int g = 0; g < kPieceGroups; ++g) to.scales[g][n] = scales[g];
    }
    if constexpr (kFours > 0) {
      if (piece > 0) return;
#pragma unroll
      for (int r = 0; r < row_tiles(active); ++r)
#pragma unroll
        for (int f = 0; f < kFours; ++f)
          to.sums[f][r] =
              op.fixed.sums[rows.sums[r] + static_cast<uint32_t>(step * kStepSums + f * 4)];
    }
  }

  template <int active>
  __device__ static void arrange(const Columns& columns, X& x) {
    x = columns;
  }

  /// A piece of a step of one tile, whose codes and scales are there. Of x, `active` tiles.
  template <int active, bool one>
  __device__ void multiply(uint32_t codes, uint32_t scales_at, int piece, int step, const X& x,
                           float (&sums)[Shape::kRowTiles][4]) const {
    const Scales scales = this->read_scales(scales_at, step);
    if constexpr (kFours > 0)
      if (piece == 0) add_minima<active>(scales, step, x, sums);
#pragma unroll
    for (int i = 0; i < kPieceGroups; ++i) {
      const int half = (piece * kPieceGroups + i) / kGroups;
      const int group = (piece * kPieceGroups + i) % kGroups;
      uint32_t low[Traits::kWords], high[Traits::kWords];
      const uint32_t from = codes + this->codes_at(half, group);
      Base::template read_words<0>(from, low);
      Base::template read_words<far>(from, high);
      float factors[kScaleGroups][2];
#pragma unroll
      for (int unit = 0; unit < kScaleGroups; ++unit)
#pragma unroll
        for (int side = 0; side < 2; ++side)
          factors[unit][side] = this->scale_of(scales, side, step, half, group, unit);
      const Pair of_low[2] = {bytes_of(low, 0), bytes_of(low, 1)};  // units of 8 columns
      const Pair of_high[2] = {bytes_of(high, 0), bytes_of(high, 1)};
#pragma unroll
      for (int n = 0; n < active; ++n) {
        const uint4& words = x.words[i][n];
        int raw[4] = {};
#pragma unroll
        for (int unit = 0; unit < 2; ++unit) {
          const auto [a, b] = of_low[unit];
          const auto [c, d] = of_high[unit];
          integer_mma<Traits::kSigned>(raw, {a, c, b, d}, unit == 0 ? words.x : words.z,
                                       unit == 0 ? words.y : words.w);
          if (kScaleGroups == 1 && unit == 0) continue;
#pragma unroll
          for (int side = 0; side < 2; ++side) {
            const float value = static_cast<float>(raw[2 * side] * 256 + raw[2 * side + 1]);
            float& sum = sums[n / 2][2 * side + n % 2];
            sum = fmaf(factors[unit % kScaleGroups][side], x.scales[i][n] * value, sum);
          }
#pragma unroll
          for (int& value : raw) value = 0;
        }
      }
    }
  }

 private:
  __device__ static constexpr int row_tiles(int active) { return (active + 1) / 2; }

  /// Adds the products of a step's minima and the sums of x.
  template <int active>
  __device__ void add_minima(const Scales& scales, int step, const X& x,
                             float (&sums)[Shape::kRowTiles][4]) const {
    float minima[kFours][2];
#pragma unroll
    for (int f = 0; f < kFours; ++f)
#pragma unroll
      for (int side = 0; side < 2; ++side)
        minima[f][side] = this->minimum_of(scales, side, step, f);
#pragma unroll
    for (int r = 0; r < row_tiles(active); ++r) {
      float raw[4] = {};
      float(&to)[4] = Traits::kQ4k ? raw : sums[r];
#pragma unroll
      for (int f = 0; f < kFours; ++f) {
        const auto& of = minima[f];
        tf32_mma(to, {of[0], of[1], of[0], of[1]}, x.sums[f][r].x, x.sums[f][r].y);
      }
      if constexpr (Traits::kQ4k)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          sums[r][j] = fmaf(scales.super_minimum[j / 2], raw[j], sums[r][j]);
    }
  }

  struct Pair {
    uint32_t first, second;
  };

  /// The codes of a unit of 8 columns as bytes. Those of 4 bits are 16 times as large, and the
  /// columns with even numbers are first.
  __device__ static Pair bytes_of(const uint32_t (&words)[Traits::kWords], int unit) {
    if constexpr (Traits::kBits == 8) return {words[2 * unit], words[2 * unit + 1]};
    constexpr uint32_t kHigh = 0xf0f0f0f0u, kSigns = Traits::kSigned ? 0x80808080u : 0;
    return {and_xor(words[unit] << 4, kHigh, kSigns), and_xor(words[unit], kHigh, kSigns)};
  }
};

}  // namespace mixtral::cuda
