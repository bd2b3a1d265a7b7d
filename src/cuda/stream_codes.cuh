#pragma once

#include "cuda/stream_shape.cuh"

namespace mixtral::cuda {

/// A lane's codes and scales of a step that its warp has copied (see stream_kernel.cuh), where the
/// lane has rows group_ and 8 more of a tile. Rows 8 to 15 of a tile are `far` bytes behind the
/// others, and their scales `far_scales` bytes. `wide`: blocks are as long as make
/// Traits::kScaleWords words of scales a step.
template <StreamCodec codec, class Shape, int far, int far_scales, bool wide>
class StreamCodes {
 protected:
  using Traits = StreamTraits<codec>;
  static constexpr int kGroups = Traits::kGroups;
  static constexpr int kScaleGroups = Traits::kScaleGroups;

 public:
  __device__ explicit StreamCodes(int block_shift) : block_shift_(block_shift) {}

  /// The row of eight that a fragment has as its i-th, by which lanes that read at one time meet no
  /// bank conflicts where TMA has swapped 16 bytes by the row's number.
  __device__ static int row_at(int i) { return (i & 1) << 2 | (i & 2) | (i >> 2 & 1); }

 protected:
  /// A step's words of scales, and of minima, of the lane's two rows of a tile.
  struct Scales {
    uint32_t of[2][Traits::kScaleWords], minima[2][Traits::kScaleWords];
    float super_scale[2], super_minimum[2];  // of q4_k
  };
  /// `at`: of a tile in the chunk of this step, or the step's own.
  __device__ Scales read_scales(uint32_t at, int step) const {
    if constexpr (Shape::kChunks) return read_chunk(at + scale_place(step));
    Scales scales = {};
    if constexpr (Traits::kInt4) {
      const uint4 low = shared_words4(at + group_ * 32);
      const uint4 high = shared_words4<16>(at + group_ * 32);
      scales = {{{low.x, low.y}, {high.x, high.y}}, {{low.z, low.w}, {high.z, high.w}}};
    } else if constexpr (Traits::kInt8) {
      const uint4 all = shared_words4(at + group_ * 16);
      scales = {{{all.x}, {all.z}}, {{all.y}, {all.w}}};
    } else if constexpr (Traits::kQ8) {
      const uint2 low = shared_words2(at + group_ * 8);
      const uint2 high = shared_words2<64>(at + group_ * 8);
      scales = {{{low.x, low.y}, {high.x, high.y}}, {}};
    } else if constexpr (Traits::kQ4k) {
      unpack_scales(shared_words4(at + group_ * 16), 0, scales);
      unpack_scales(shared_words4<128>(at + group_ * 16), 1, scales);
    } else if constexpr (Traits::kTable || Traits::kQ4) {
      const uint4 low = shared_words4(at + group_ * 16);
      const uint4 high = shared_words4<128>(at + group_ * 16);
      scales = {{{low.x, low.y, low.z, low.w}, {high.x, high.y, high.z, high.w}}, {}};
    } else if constexpr (Traits::kScaled) {
      scales = {{{shared_word(at + group_ * 4)}, {shared_word<32>(at + group_ * 4)}}, {}};
    }
    return scales;
  }

  /// The scale of one of the two rows, for a scale group of a group of half a step.
  __device__ float scale_of(const Scales& scales, int side, int step, int half, int group,
                            int scale_group) const {
    // Of the step's blocks of 32.
    [[maybe_unused]] const int number = (half * kGroups + group) * kScaleGroups + scale_group;
    if constexpr (Traits::kQ4k) {
      return scaled_byte(scales.of[side], number, scales.super_scale[side]);
    } else if constexpr (Traits::kPlanes) {
      return half_of(scales.of[side][number / 2], number % 2);
    } else if constexpr (Traits::kMinima) {
      // int4: a word for each half.
      const int word = Traits::kInt4 ? half : 0;
      const int block = wide ? (Traits::kInt4 ? group : half) : block_of(step, half, group);
      return half_of(scales.of[side][word], block);
    } else {
      // nf4: a word for each group.
      return __uint_as_float(scales.of[side][Traits::kTable ? 2 * half + group : 0]);
    }
  }

  /// The minimum of block 4 · `four` + quarter of a step, of one of the two rows. It is exact as
  /// tf32. That of q4_k is still to be multiplied by super_minimum.
  __device__ float minimum_of(const Scales& scales, int side, int step, int four) const {
    if constexpr (Traits::kQ4k) {
      return number_of(scales.minima[side][four], quarter_) - 0x1p23f;
    } else if constexpr (Traits::kInt4) {
      // A word for each half, of two groups.
      const uint32_t word = quarter_ < 2 ? scales.minima[side][0] : scales.minima[side][1];
      return half_of(word, wide ? quarter_ % 2 : block_of(step, quarter_ / 2, quarter_ % 2));
    } else {
      const float minimum =
          half_of(scales.minima[side][0], wide ? quarter_ % 2 : block_of(step, quarter_, 0));
      return quarter_ < 2 ? minimum : 0;
    }
  }

  /// Where the lane's codes of a group of half a step are, of the first eight rows.
  __device__ uint32_t codes_at(int half, int group) const {
    if constexpr (Traits::kBits == 4)
      return (codes_ + static_cast<uint32_t>(quarter_ % 2 * 8)) ^
             static_cast<uint32_t>(half * 64 + group * 32);
    return codes_ ^ static_cast<uint32_t>(half * 64);
  }

  /// Consecutive words of codes or scales, of the row that is `offset` bytes on.
  template <int offset, int n>
  __device__ static void read_words(uint32_t from, uint32_t (&words)[n]) {
    if constexpr (n == 4) {
      const uint4 four = shared_words4<offset>(from);
      words[0] = four.x;
      words[1] = four.y;
      words[2] = four.z;
      words[3] = four.w;
    } else if constexpr (n == 2) {
      const uint2 two = shared_words2<offset>(from);
      words[0] = two.x;
      words[1] = two.y;
    } else {
      words[0] = shared_word<offset>(from);
    }
  }

  const int lane_ = static_cast<int>(threadIdx.x) % kWarp;
  const int group_ = lane_ / 4, quarter_ = lane_ % 4;  // of a fragment of mma

 private:
  /// Where the lane's scales of a step are in a tile's part of a chunk, of its row of the first
  /// eight.
  __device__ uint32_t scale_place(int step) const {
    constexpr uint32_t kBytes = 4 * Traits::kScaleWords;
    return scale_row_ + (static_cast<uint32_t>(step) % Shape::kChunkSteps * kBytes ^ scale_swap_);
  }

  /// A step's scales and minima in a chunk.
  __device__ static Scales read_chunk(uint32_t from) {
    Scales scales = {};
    if constexpr (Traits::kQ4k) {
      unpack_scales(shared_words4(from), 0, scales);
      unpack_scales(shared_words4<far_scales>(from), 1, scales);
    } else {
      read_words<0>(from, scales.of[0]);
      read_words<far_scales>(from, scales.of[1]);
    }
    if constexpr (Traits::kMinima) {
      read_words<Shape::kMinimaAt>(from, scales.minima[0]);
      read_words<Shape::kMinimaAt + far_scales>(from, scales.minima[1]);
    }
    return scales;
  }

  /// The header of a super-block of q4_k: eight scales and eight minima of 6 bits, as bytes.
  __device__ static void unpack_scales(const uint4& header, int side, Scales& to) {
    constexpr uint32_t kSix = 0x3f3f3f3fu, kFour = 0x0f0f0f0fu, kTop = 0x30303030u;
    to.of[side][0] = header.y & kSix;
    to.minima[side][0] = header.z & kSix;
    to.of[side][1] = and_or(header.y >> 2, kTop, header.w & kFour);
    to.minima[side][1] = and_or(header.z >> 2, kTop, header.w >> 4 & kFour);
    to.super_scale[side] = __half2float(__ushort_as_half(static_cast<uint16_t>(header.x)));
    to.super_minimum[side] = -__half2float(__ushort_as_half(static_cast<uint16_t>(header.x >> 16)));
  }

  /// Byte `index` of words, times `factor`: exact, where that has no more bits than an f16.
  __device__ static float scaled_byte(const uint32_t (&words)[Traits::kScaleWords], int index,
                                      float factor) {
    return fmaf(number_of(words[index / 4], index % 4), factor, -0x1p23f * factor);
  }
  /// 2^23 + byte `index` of a word.
  __device__ static float number_of(uint32_t word, int index) {
    return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7540 + static_cast<uint32_t>(index)));
  }

  /// Which of a word's two scales a group's block has.
  __device__ int block_of(int step, int half, int group) const {
    return ((2 * step + half) * Traits::kColumns + group * 64) >> block_shift_ & 1;
  }

  /// The first or the second number of 16 bits in a word.
  __device__ static float half_of(uint32_t word, int second) {
    const uint32_t high = __byte_perm(word, 0, second ? 0x3244 : 0x1044);
    if constexpr (Traits::kHalfScales)
      return __half2float(__ushort_as_half(static_cast<uint16_t>(high >> 16)));
    return __uint_as_float(high);
  }

  /// Where 16 bytes of the lane are in a tile, of its row of the first eight.
  const uint32_t codes_ =
      static_cast<uint32_t>(row_at(group_) * kStreamStepBytes +
                            ((Traits::kBits == 4 ? quarter_ / 2 : quarter_) ^ row_at(group_)) * 16);
  const uint32_t scale_row_ = static_cast<uint32_t>(row_at(group_) * Shape::kChunkBytes);
  const uint32_t scale_swap_ = static_cast<uint32_t>(row_at(group_) * 16);  // by TMA
  int block_shift_;
};

}  // namespace mixtral::cuda
