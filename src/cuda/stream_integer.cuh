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

/// What a lane does with steps of integer codes: products with x in fixed point (fixed_rows.h).
/// The high and the low bytes of a row of x are two columns of tensor cores' products, so that a
/// tile has four rows. A lane gets both results of a row, and their sum is exact.
template <StreamCodec codec, class Shape, int far, bool wide>
class StreamIntegers : StreamCodes<codec, Shape, far, wide> {
  using Base = StreamCodes<codec, Shape, far, wide>;
  using Base::group_, Base::kGroups, Base::kScaleGroups, Base::lane_, Base::quarter_;
  using typename Base::Scales, typename Base::Traits;
  static constexpr int kPieceGroups = Shape::kHalves * kGroups;  // of 64 columns
  static constexpr int kXSums = Traits::kXSums;                  // in 64 columns

 public:
  using Base::row_at;
  static constexpr int kTileRows = 4;
  static constexpr int kXTiles = Shape::kRows / kTileRows;
  static constexpr bool kOneRow = false;

  /// A lane's numbers of x for a piece of a step.
  struct Columns {
    uint4 words[kPieceGroups][kXTiles];
    float scales[kPieceGroups][kXTiles];
    float sums[kXSums > 0 ? kPieceGroups* kXSums : 1][kXTiles];
  };
  using X = Columns;

  /// Where a lane's rows of x are.
  struct Rows {
    uint32_t bytes[kXTiles], factors[kXTiles];

    template <class Task>
    __device__ Rows(const Task& op, int first_row, int count) {
      const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
      for (int n = 0; n < kXTiles; ++n) {
        const auto row_of = [&](int row) {
          return static_cast<uint32_t>(first_row + min(n * kTileRows + row, count - 1));
        };
        bytes[n] = (2 * row_of(lane / 8) + lane / 4 % 2) * op.fixed.padded + lane % 4 * 16;
        factors[n] = row_of(lane % 4) * (op.fixed.padded / 64);
      }
    }
  };

  __device__ StreamIntegers(uint32_t, int block_shift) : Base(block_shift) {}

  /// Has the cache fetch what this warp will read of so many rows, at one time.
  template <class Task>
  __device__ static void warm(const Task& op, int first_row, int count, int warp, int steps) {
    constexpr int kSector = 32, kSectors = 2 * Traits::kColumns / kSector;  // of a step, a byte row
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int of_row = steps * kSectors;
    const char* const from = op.fixed.bytes + int64_t{first_row} * 2 * op.fixed.padded;
#pragma unroll 4
    for (int i = lane; i < 2 * count * of_row; i += kWarp) {
      const int row = i / of_row, rest = i - row * of_row;
      const int step = warp + rest / kSectors * Shape::kWarps;
      fetch_word(from + int64_t{row} * op.fixed.padded +
                 (step * kSectors + rest % kSectors) * kSector);
    }
  }

  template <int active, class Task>
  __device__ void load(const Task& op, const Rows& rows, int step, int piece, Columns& to) const {
    const uint32_t group = static_cast<uint32_t>((2 * step + piece * Shape::kHalves) * kGroups);
#pragma unroll
    for (int n = 0; n < active; ++n) {
#pragma unroll
      for (int g = 0; g < kPieceGroups; ++g)
        to.words[g][n] =
            *reinterpret_cast<const uint4*>(op.fixed.bytes + rows.bytes[n] + (group + g) * 64);
      const uint32_t at = rows.factors[n] + group;
      float scales[kPieceGroups];
      cuda::load(op.fixed.scales + at, scales);
#pragma unroll
      for (int g = 0; g < kPieceGroups; ++g) to.scales[g][n] = scales[g];
      if constexpr (kXSums > 0) {
        float sums[kPieceGroups * kXSums];
        cuda::load(op.fixed.sums + at * kXSums, sums);
#pragma unroll
        for (int i = 0; i < kPieceGroups * kXSums; ++i) to.sums[i][n] = sums[i];
      }
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
    const Scales scales = this->read_scales(scales_at);
#pragma unroll
    for (int h = 0; h < Shape::kHalves; ++h) {
      const int half = piece * Shape::kHalves + h;
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        const int group = h * kGroups + g;
        uint32_t low[Traits::kWords], high[Traits::kWords];
        const uint32_t from = codes + this->codes_at(half, g);
        Base::template read_codes<0>(from, low);
        Base::template read_codes<far>(from, high);
        int raw[active][4] = {};
#pragma unroll
        for (int unit = 0; unit < 2; ++unit) {  // of 8 columns of the lane
          const auto [a, b] = bytes_of(low, unit);
          const auto [c, d] = bytes_of(high, unit);
#pragma unroll
          for (int n = 0; n < active; ++n) {
            const uint4& words = x.words[group][n];
            integer_mma<Traits::kSigned>(raw[n], {a, c, b, d}, unit == 0 ? words.x : words.z,
                                         unit == 0 ? words.y : words.w);
          }
          if (kScaleGroups == 1 && unit == 0) continue;
          const int scale_group = kScaleGroups == 1 ? 0 : unit;
#pragma unroll
          for (int side = 0; side < 2; ++side) {
            const auto [scale, minimum] = this->scale_of(scales, side, step, half, g, scale_group);
#pragma unroll
            for (int n = 0; n < active; ++n) {
              const float value = static_cast<float>(raw[n][2 * side] * 256 + raw[n][2 * side + 1]);
              float& sum = sums[n / 2][2 * side + n % 2];
              sum = fmaf(scale, x.scales[group][n] * value, sum);
              if constexpr (kXSums > 0)
                sum = fmaf(minimum, x.sums[group * kXSums + (kXSums == 2 ? unit : 0)][n], sum);
            }
          }
          if (unit == 0)
#pragma unroll
            for (int n = 0; n < active; ++n)
#pragma unroll
              for (int& value : raw[n]) value = 0;
        }
      }
    }
  }

 private:
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
