#pragma once

#include <type_traits>

#include "cuda/mma.cuh"
#include "cuda/stream_codes.cuh"

namespace mixtral::cuda {

/// c += a b, and c = a b, for 16 × 16 by 16 × 8.
__device__ inline void stream_mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline void stream_mma_first(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                        uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%10,%10,%10,%10};"
      : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.0f));
}

/// What a lane does with steps of bf16, fp8 and nf4: products with x in bf16.
template <StreamCodec codec, class Shape, int far, int far_scales, bool wide>
class StreamNumbers : StreamCodes<codec, Shape, far, far_scales, wide> {
  using Base = StreamCodes<codec, Shape, far, far_scales, wide>;
  using Base::kGroups, Base::lane_, Base::quarter_;
  using typename Base::Scales, typename Base::Traits;
  static constexpr int kRowTiles = Shape::kRowTiles;
  static constexpr int kHalves = Shape::kPieceGroups / kGroups;  // of a piece
  static constexpr int kPartsOfGroup = Traits::kXParts / kGroups;

 public:
  using Base::row_at;
  static constexpr int kTileRows = 8;
  static constexpr int kXTiles = kRowTiles;
  static constexpr bool kOneRow = Traits::kScaled;  // one row of x spares some of the scaling

  /// Of x, of a lane, for a piece of a step: as they lie.
  using Columns = uint4[kHalves][kRowTiles][Traits::kXParts];
  /// The same for tensor cores, in the order of the pairs of codes.
  struct X {
    uint32_t words[kHalves][kGroups][kRowTiles][Traits::kXWords];
  };

  /// Where a lane's rows of x are.
  struct Rows {
    const Bf16* x[kRowTiles];

    template <class Task>
    __device__ Rows(const Task& op, int first_row, int count) {
      const int lane = static_cast<int>(threadIdx.x) % kWarp;
      // What is computed of rows that are not there is not used.
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
        x[r] = op.x + int64_t{first_row + min(r * 8 + lane / 4, count - 1)} * op.inputs;
    }
  };

  /// `table`: nf4's, in shared memory.
  __device__ StreamNumbers(uint32_t table, int block_shift)
      : Base(block_shift), table_(table + 4 * lane_) {}

  /// Has the cache fetch what this warp will read of so many rows, at one time.
  template <class Task>
  __device__ static void warm(const Task& op, int first_row, int count, int warp, int steps) {
    constexpr int kSector = 16;                               // elements
    constexpr int kSectors = 2 * Traits::kColumns / kSector;  // of a step
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int of_row = steps * kSectors;
#pragma unroll 4
    for (int i = lane; i < count * of_row; i += kWarp) {
      const int row = i / of_row, rest = i - row * of_row;
      const int step = warp + rest / kSectors * Shape::kWarps;
      const int column = (step * kSectors + rest % kSectors) * kSector;
      if (column < op.inputs) fetch_word(op.x + int64_t{first_row + row} * op.inputs + column);
    }
  }

  /// The lane's columns of x for a piece of a step; zeros behind the end.
  template <int active, class Task>
  __device__ void load(const Task& op, const Rows& rows, int step, int piece, Columns& to) const {
    const int first = (2 * step + piece * kHalves) * Traits::kColumns;
    const auto load_columns = [&](auto whole) {
#pragma unroll
      for (int h = 0; h < kHalves; ++h)
#pragma unroll
        for (int r = 0; r < active; ++r)
#pragma unroll
          for (int part = 0; part < Traits::kXParts; ++part) {
            const int column = first + h * Traits::kColumns + column_of(part);
            if (whole || column < op.inputs)
              to[h][r][part] = *reinterpret_cast<const uint4*>(rows.x[r] + column);
            else
              to[h][r][part] = {0, 0, 0, 0};
          }
    };
    if (first + kHalves * Traits::kColumns <= op.inputs)
      load_columns(std::true_type{});
    else
      load_columns(std::false_type{});
  }

  template <int active>
  __device__ static void arrange(const Columns& columns, X& x) {
#pragma unroll
    for (int h = 0; h < kHalves; ++h)
#pragma unroll
      for (int g = 0; g < kGroups; ++g)
#pragma unroll
        for (int r = 0; r < active; ++r)
#pragma unroll
          for (int p = 0; p < kPartsOfGroup; ++p)
            arrange_eight(columns[h][r][g * kPartsOfGroup + p], x.words[h][g][r] + 4 * p);
  }

  /// A piece of a step of one tile, whose codes and scales are there. Of x, `active` tiles; `one`:
  /// the first row alone.
  template <int active, bool one>
  __device__ void multiply(uint32_t codes, uint32_t scales_at, int piece, int step, const X& x,
                           float (&sums)[kRowTiles][4]) const {
    const Scales scales = this->read_scales(scales_at, step);
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      const int half = piece * kHalves + h;
      if constexpr (!Traits::kScaled) {
        const uint32_t from = codes + this->codes_at(half, 0);
        const uint4 low = shared_words4(from), high = shared_words4<far>(from);
#pragma unroll
        for (int r = 0; r < active; ++r) {
          const auto& words = x.words[h][0][r];
          stream_mma(sums[r], {low.x, high.x, low.y, high.y}, words[0], words[1]);
          stream_mma(sums[r], {low.z, high.z, low.w, high.w}, words[2], words[3]);
        }
      } else {
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
          uint32_t low[Traits::kWords], high[Traits::kWords];
          const uint32_t from = codes + this->codes_at(half, g);
          Base::template read_words<0>(from, low);
          Base::template read_words<far>(from, high);
          float raw[kRowTiles][4];
          multiply_codes<active>(low, high, x.words[h][g], raw);
#pragma unroll
          for (int side = 0; side < 2; ++side) {
            float scale = this->scale_of(scales, side, step, half, g, 0);
            if constexpr (Traits::kFp8) scale *= kFp8SumFactor;
#pragma unroll
            for (int r = 0; r < active; ++r)
#pragma unroll
              for (int j = 0; j < (one ? 1 : 2); ++j)
                sums[r][2 * side + j] = fmaf(scale, raw[r][2 * side + j], sums[r][2 * side + j]);
          }
        }
      }
    }
  }

 private:
  /// The first of the eight columns of a part of x, within half a step: those whose codes the lane
  /// multiplies.
  __device__ int column_of(int part) const {
    if constexpr (Traits::kBits == 16) return quarter_ * 8;
    return part / 2 * 64 + quarter_ * 16 + part % 2 * 8;
  }

  /// Eight columns of x in the order of the pairs of codes.
  __device__ static void arrange_eight(const uint4& eight, uint32_t* to) {
    if constexpr (Traits::kFp8) {
      to[0] = multiply_bf16(__byte_perm(eight.x, eight.y, 0x5410), kFp8XFactor);
      to[1] = multiply_bf16(__byte_perm(eight.x, eight.y, 0x7632), kFp8XFactor);
      to[2] = multiply_bf16(__byte_perm(eight.z, eight.w, 0x5410), kFp8XFactor);
      to[3] = multiply_bf16(__byte_perm(eight.z, eight.w, 0x7632), kFp8XFactor);
    } else {
      to[0] = eight.x;
      to[1] = eight.y;
      to[2] = eight.z;
      to[3] = eight.w;
    }
  }

  /// raw = codes · x of the columns of a group, which share a scale.
  template <int active>
  __device__ void multiply_codes(const uint32_t (&low)[Traits::kWords],
                                 const uint32_t (&high)[Traits::kWords],
                                 const uint32_t (&x)[kRowTiles][Traits::kXWords],
                                 float (&raw)[kRowTiles][4]) const {
#pragma unroll
    for (int w = 0; w < Traits::kWords; ++w) {
      const StreamWord<codec> a(low[w], table_), b(high[w], table_);
      constexpr int kMmas = StreamWord<codec>::kPairs / 2;
#pragma unroll
      for (int k = 0; k < kMmas; ++k)
#pragma unroll
        for (int r = 0; r < active; ++r) {
          const uint32_t codes[4] = {a.pair[2 * k], b.pair[2 * k], a.pair[2 * k + 1],
                                     b.pair[2 * k + 1]};
          const int word = 2 * (kMmas * w + k);
          if (w == 0 && k == 0)
            stream_mma_first(raw[r], codes, x[r][word], x[r][word + 1]);
          else
            stream_mma(raw[r], codes, x[r][word], x[r][word + 1]);
        }
    }
  }

  uint32_t table_;
};

}  // namespace mixtral::cuda
