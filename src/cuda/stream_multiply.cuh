#pragma once

#include "cuda/mma.cuh"
#include "cuda/stream_shape.cuh"

namespace mixtral::cuda {

/// What a lane does with the steps that its warp has copied (see stream_kernel.cuh).
template <StreamCodec codec, int tiles, int row_tiles>
class StreamMultiplier {
  using Traits = StreamTraits<codec>;
  using Shape = StreamShape<codec, tiles, row_tiles>;

 public:
  using Columns = uint4[row_tiles][Traits::kXParts];  // of x, of a lane, for half a step

  /// `table`: nf4's, in shared memory.
  __device__ StreamMultiplier(const uint32_t* table, int block_shift, bool half_scales)
      : table_(table + lane_), block_shift_(block_shift), half_scales_(half_scales) {}

  /// Where a slot has 16 bytes of a row. They are swapped by row, so that neither the copies nor
  /// the reading of fragments for tensor cores meets bank conflicts.
  __device__ static int place(int row, int chunk) {
    const int swap = (row & 1) << 2 | (row & 2) | (row >> 2 & 1);
    return row * kStreamStepBytes + (chunk ^ swap) * 16;
  }

  /// The first of the eight columns of a part of x, within half a step: those whose codes the lane
  /// multiplies.
  __device__ int column_of(int part) const {
    if constexpr (Traits::kBits == 16) return quarter_ * 8;
    return part / 2 * 64 + quarter_ * 16 + part % 2 * 8;
  }

  /// Half a step: 64 bytes of each row.
  __device__ void multiply(const char* from, int half, int step, const Columns& columns,
                           float (&sums)[tiles][row_tiles][4]) {
#pragma unroll
    for (int group = 0; group < Traits::kGroups; ++group) {
      uint32_t x[row_tiles][8];
      arrange_x(columns, group, x);
      if constexpr (!Traits::kScaled) {
#pragma unroll
        for (int i = 0; i < tiles; ++i) {
          const uint4 low = chunk(from, 16 * i + group_, 4 * half + quarter_);
          const uint4 high = chunk(from, 16 * i + 8 + group_, 4 * half + quarter_);
#pragma unroll
          for (int r = 0; r < row_tiles; ++r) {
            mma(sums[i][r], {low.x, high.x, low.y, high.y}, x[r][0], x[r][1]);
            mma(sums[i][r], {low.z, high.z, low.w, high.w}, x[r][2], x[r][3]);
          }
        }
      } else {
        float of_x[row_tiles][4] = {};
        if constexpr (Traits::kMinimum) {
          constexpr uint32_t kOnes = 0x3f803f80u;
#pragma unroll
          for (int r = 0; r < row_tiles; ++r)
#pragma unroll
            for (int k = 0; k < 4; ++k)
              mma(of_x[r], {kOnes, kOnes, kOnes, kOnes}, x[r][2 * k], x[r][2 * k + 1]);
        }
#pragma unroll
        for (int i = 0; i < tiles; ++i)
          multiply_codes(from, i, half, group, step, x, of_x, sums[i]);
      }
    }
  }

 private:
  __device__ static uint4 chunk(const char* from, int row, int index) {
    return *reinterpret_cast<const uint4*>(from + place(row, index));
  }

  /// A lane's 16 columns of x of a group (8 in bf16), in the order of the pairs of codes.
  __device__ static void arrange_x(const Columns& columns, int group, uint32_t (&x)[row_tiles][8]) {
    constexpr int kParts = Traits::kXParts / Traits::kGroups;
#pragma unroll
    for (int r = 0; r < row_tiles; ++r)
#pragma unroll
      for (int p = 0; p < kParts; ++p) {
        uint4 eight = columns[r][group * kParts + p];
        if constexpr (codec == StreamCodec::int4)
          eight = {__byte_perm(eight.x, eight.z, 0x5410), __byte_perm(eight.x, eight.z, 0x7632),
                   __byte_perm(eight.y, eight.w, 0x5410), __byte_perm(eight.y, eight.w, 0x7632)};
        x[r][4 * p] = eight.x;
        x[r][4 * p + 1] = eight.y;
        x[r][4 * p + 2] = eight.z;
        x[r][4 * p + 3] = eight.w;
      }
  }

  /// A lane's words of codes of a group, of one row.
  __device__ void read_codes(const char* from, int row, int half, int group,
                             uint32_t (&words)[Traits::kWords]) const {
    if constexpr (Traits::kBits == 4) {
      const auto two = *reinterpret_cast<const uint2*>(
          from + place(row, 4 * half + 2 * group + quarter_ / 2) + quarter_ % 2 * 8);
      words[0] = two.x;
      words[1] = two.y;
    } else {
      const uint4 four = chunk(from, row, 4 * half + quarter_);
      words[0] = four.x;
      words[1] = four.y;
      words[2] = four.z;
      words[3] = four.w;
    }
  }

  __device__ void multiply_codes(const char* from, int tile, int half, int group, int step,
                                 const uint32_t (&x)[row_tiles][8],
                                 const float (&of_x)[row_tiles][4], float (&sums)[row_tiles][4]) {
    uint32_t low[Traits::kWords], high[Traits::kWords];
    read_codes(from, 16 * tile + group_, half, group, low);
    read_codes(from, 16 * tile + 8 + group_, half, group, high);
    float raw[row_tiles][4] = {}, raw_high[row_tiles][4] = {};
#pragma unroll
    for (int w = 0; w < Traits::kWords; ++w) {
      const StreamWord<codec> a(low[w], table_), b(high[w], table_);
      constexpr int kMmas = Traits::kBits == 4 ? 2 : 1;  // of a word, and its columns of x
#pragma unroll
      for (int k = 0; k < kMmas; ++k)
#pragma unroll
        for (int r = 0; r < row_tiles; ++r)
          mma(raw[r], {a.pair[2 * k], b.pair[2 * k], a.pair[2 * k + 1], b.pair[2 * k + 1]},
              x[r][2 * (kMmas * w + k)], x[r][2 * (kMmas * w + k) + 1]);
      if constexpr (codec == StreamCodec::int8)
#pragma unroll
        for (int r = 0; r < row_tiles; ++r)
          mma(raw_high[r], {a.pair[2], b.pair[2], a.pair[3], b.pair[3]}, x[r][2 * w],
              x[r][2 * w + 1]);
    }
    const uint4 words = *reinterpret_cast<const uint4*>(
        from + Shape::kWeights + half * Shape::kScales + (tile * kWarp + group_ * 4) * 4);
    const int block = ((2 * step + half) * Traits::kColumns + group * 64) >> block_shift_;
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const uint32_t first = side ? words.z : words.x, second = side ? words.w : words.y;
      float scale, offset = 0;
      if constexpr (Traits::kMinimum) {
        scale = half_of(first, block & 1);
        offset = half_of(second, block & 1) - kStreamOffset<codec> * scale;
      } else {
        scale = __uint_as_float(codec == StreamCodec::nf4 && group ? second : first);
      }
#pragma unroll
      for (int r = 0; r < row_tiles; ++r)
#pragma unroll
        for (int j = 2 * side; j < 2 * side + 2; ++j) {
          float value = raw[r][j];
          if constexpr (codec == StreamCodec::int8) value = fmaf(16.0f, raw_high[r][j], value);
          sums[r][j] = fmaf(scale, value, sums[r][j]);
          if constexpr (Traits::kMinimum) sums[r][j] = fmaf(offset, of_x[r][j % 2], sums[r][j]);
        }
    }
  }

  __device__ float half_of(uint32_t word, int which) const {
    const auto bits = static_cast<uint16_t>(which ? word >> 16 : word);
    if (!half_scales_) return __uint_as_float(uint32_t{bits} << 16);
    return __half2float(__ushort_as_half(bits));
  }

  const int lane_ = static_cast<int>(threadIdx.x) % kWarp;
  const int group_ = lane_ / 4, quarter_ = lane_ % 4;  // of a fragment of mma
  const uint32_t* table_;
  int block_shift_;
  bool half_scales_;
};

}  // namespace mixtral::cuda
