#pragma once

#include "cuda/mma.cuh"
#include "cuda/stream_shape.cuh"

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

/// What a lane does with the steps that its warp has copied (see stream_kernel.cuh). Rows 8 to 15
/// of a tile are `far` bytes behind the others.
template <StreamCodec codec, int tiles, int row_tiles, int far>
class StreamMultiplier {
  using Traits = StreamTraits<codec>;
  using Shape = StreamShape<codec, tiles, row_tiles>;
  static constexpr int kGroups = Traits::kGroups;
  static constexpr int kPartsOfGroup = Traits::kXParts / kGroups;
  static constexpr int kScaleGroups = Traits::kScaleGroups;
  static constexpr int kWordsOfScale = Traits::kWords / kScaleGroups;  // of codes
  static constexpr int kXWordsOfScale = Traits::kXWords / kScaleGroups;

 public:
  /// Of x, of a lane, for a piece of a step: as they lie.
  using Columns = uint4[Shape::kHalves][row_tiles][Traits::kXParts];
  /// The same for tensor cores, in the order of the pairs of codes, and the sums of each group of
  /// columns where there are minima.
  struct X {
    uint32_t words[Shape::kHalves][kGroups][row_tiles][Traits::kXWords];
    float sums[Shape::kHalves][kGroups][kScaleGroups][row_tiles][2];
  };

  /// `table`: nf4's, in shared memory.
  __device__ StreamMultiplier(uint32_t table, int block_shift)
      : table_(table + 4 * lane_), block_shift_(block_shift) {}

  /// The row of eight that a fragment has as its i-th, by which lanes that read at one time meet no
  /// bank conflicts where TMA has swapped 16 bytes by the row's number.
  __device__ static int row_at(int i) { return (i & 1) << 2 | (i & 2) | (i >> 2 & 1); }

  /// The first of the eight columns of a part of x, within half a step: those whose codes the lane
  /// multiplies.
  __device__ int column_of(int part) const {
    if constexpr (Traits::kBits == 16) return quarter_ * 8;
    if constexpr (Traits::kPlanes) return part * 32 + quarter_ * 8;
    return part / 2 * 64 + quarter_ * 16 + part % 2 * 8;
  }

  template <int active>
  __device__ static void arrange(const Columns& columns, X& x) {
#pragma unroll
    for (int h = 0; h < Shape::kHalves; ++h)
#pragma unroll
      for (int g = 0; g < kGroups; ++g)
#pragma unroll
        for (int r = 0; r < active; ++r) {
          auto& words = x.words[h][g][r];
#pragma unroll
          for (int p = 0; p < kPartsOfGroup; ++p)
            arrange_eight(columns[h][r][g * kPartsOfGroup + p], words + 4 * p);
          if constexpr (Traits::kOffset)
#pragma unroll
            for (int s = 0; s < kScaleGroups; ++s) {
              constexpr uint32_t kOne = 0x3f803f80u, kOnes[4] = {kOne, kOne, kOne, kOne};
              const uint32_t* of_scale = words + s * kXWordsOfScale;
              float sums[4];
              stream_mma_first(sums, kOnes, of_scale[0], of_scale[1]);
#pragma unroll
              for (int k = 1; k < kXWordsOfScale / 2; ++k)
                stream_mma(sums, kOnes, of_scale[2 * k], of_scale[2 * k + 1]);
              x.sums[h][g][s][r][0] = sums[0];
              x.sums[h][g][s][r][1] = sums[1];
            }
        }
  }

  /// A piece of a step of one tile, whose codes and scales are there. `one`: of the first row of x
  /// alone.
  template <int active, bool one>
  __device__ void multiply(uint32_t codes, uint32_t scales_at, int piece, int step, const X& x,
                           float (&sums)[row_tiles][4]) const {
    Scales scales;
    if constexpr (Traits::kScaled) scales = read_scales(scales_at);
#pragma unroll
    for (int h = 0; h < Shape::kHalves; ++h) {
      const int half = piece * Shape::kHalves + h;
      if constexpr (!Traits::kScaled) {
        const uint32_t from = codes + codes_at(half, 0);
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
          const uint32_t from = codes + codes_at(half, g);
          read_codes<0>(from, low);
          read_codes<far>(from, high);
#pragma unroll
          for (int s = 0; s < kScaleGroups; ++s) {
            float raw[row_tiles][4];
            multiply_codes<active>(low, high, s, x.words[h][g], x.sums[h][g][s], raw);
            add_scaled<active, one>(scales, half, g, s, step, raw, x.sums[h][g][s], sums);
          }
        }
      }
    }
  }

 private:
  /// A step's words of scales, and of minima, of the lane's rows of a tile: group_ and 8 more.
  struct Scales {
    uint32_t of[2][Traits::kScaleWords], minima[2][Traits::kScaleWords];
    float super_scale[2], super_minimum[2];  // of q4_k
  };

  __device__ Scales read_scales(uint32_t at) const {
    Scales scales;
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
    } else {
      scales = {{{shared_word(at + group_ * 4)}, {shared_word<32>(at + group_ * 4)}}, {}};
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
    // 2^23 + the byte.
    const uint32_t number = __byte_perm(words[index / 4], 0x4b000000u, 0x7540 + index % 4);
    return fmaf(__uint_as_float(number), factor, -0x1p23f * factor);
  }

  /// Where the lane's codes of a group of half a step are, of the first eight rows.
  __device__ uint32_t codes_at(int half, int group) const {
    if constexpr (Traits::kBits == 4)
      return (codes_ + static_cast<uint32_t>(quarter_ % 2 * 8)) ^
             static_cast<uint32_t>(half * 64 + group * 32);
    return codes_ ^ static_cast<uint32_t>(half * 64);
  }

  /// Eight columns of x in the order of the pairs of codes.
  __device__ static void arrange_eight(const uint4& eight, uint32_t* to) {
    if constexpr (Traits::kFours) {
      to[0] = __byte_perm(eight.x, eight.z, 0x5410);
      to[1] = __byte_perm(eight.x, eight.z, 0x7632);
      to[2] = __byte_perm(eight.y, eight.w, 0x5410);
      to[3] = __byte_perm(eight.y, eight.w, 0x7632);
    } else if constexpr (Traits::kBits == 8) {
      to[0] = __byte_perm(eight.x, eight.y, 0x5410);
      to[1] = __byte_perm(eight.x, eight.y, 0x7632);
      to[2] = __byte_perm(eight.z, eight.w, 0x5410);
      to[3] = __byte_perm(eight.z, eight.w, 0x7632);
    } else {
      to[0] = eight.x;
      to[1] = eight.y;
      to[2] = eight.z;
      to[3] = eight.w;
    }
    if constexpr (Traits::kFp8)
#pragma unroll
      for (int i = 0; i < 4; ++i) to[i] = multiply_bf16(to[i], kFp8XFactor);
  }

  /// A lane's words of codes of a group, of the row that is `offset` bytes on.
  template <int offset>
  __device__ static void read_codes(uint32_t from, uint32_t (&words)[Traits::kWords]) {
    if constexpr (Traits::kBits == 4) {
      const uint2 two = shared_words2<offset>(from);
      words[0] = two.x;
      words[1] = two.y;
    } else {
      const uint4 four = shared_words4<offset>(from);
      words[0] = four.x;
      words[1] = four.y;
      words[2] = four.z;
      words[3] = four.w;
    }
  }

  /// raw = codes · x of the columns of a group that share a scale. What the pairs have more than
  /// the codes is taken away by what the sum begins with.
  template <int active>
  __device__ void multiply_codes(const uint32_t (&low)[Traits::kWords],
                                 const uint32_t (&high)[Traits::kWords], int scale_group,
                                 const uint32_t (&x)[row_tiles][Traits::kXWords],
                                 const float (&of_x)[row_tiles][2],
                                 float (&raw)[row_tiles][4]) const {
    if constexpr (Traits::kOffset)
#pragma unroll
      for (int r = 0; r < active; ++r)
#pragma unroll
        for (int j = 0; j < 4; ++j) raw[r][j] = -kStreamOffset<codec> * of_x[r][j % 2];
#pragma unroll
    for (int i = 0; i < kWordsOfScale; ++i) {
      const int w = scale_group * kWordsOfScale + i;
      const StreamWord<codec> a(low[w], table_), b(high[w], table_);
      constexpr int kMmas = StreamWord<codec>::kPairs / 2;
#pragma unroll
      for (int k = 0; k < kMmas; ++k)
#pragma unroll
        for (int r = 0; r < active; ++r) {
          const uint32_t codes[4] = {a.pair[2 * k], b.pair[2 * k], a.pair[2 * k + 1],
                                     b.pair[2 * k + 1]};
          const int word = 2 * (kMmas * w + k);
          if (i == 0 && k == 0 && !Traits::kOffset)
            stream_mma_first(raw[r], codes, x[r][word], x[r][word + 1]);
          else
            stream_mma(raw[r], codes, x[r][word], x[r][word + 1]);
        }
    }
  }

  /// sums += scale · raw + minimum · sums of x: a group's.
  template <int active, bool one>
  __device__ void add_scaled(const Scales& scales, int half, int group, int scale_group, int step,
                             const float (&raw)[row_tiles][4], const float (&of_x)[row_tiles][2],
                             float (&sums)[row_tiles][4]) const {
    // Which of a word's two a block has.
    const int block = ((2 * step + half) * Traits::kColumns + group * 64) >> block_shift_;
    const uint32_t selector = block & 1 ? 0x3244 : 0x1044;
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      // int4: a word for each half; nf4: one for each group.
      const int word = Traits::kTable ? 2 * half + group : Traits::kInt4 ? half : 0;
      float scale, minimum = 0;
      // Of the step's blocks of 32.
      [[maybe_unused]] const int number = (half * kGroups + group) * kScaleGroups + scale_group;
      if constexpr (Traits::kQ4k) {
        scale = scaled_byte(scales.of[side], number, scales.super_scale[side]);
        minimum = scaled_byte(scales.minima[side], number, scales.super_minimum[side]);
      } else if constexpr (Traits::kPlanes) {
        scale = half_of(scales.of[side][number / 2], number % 2 == 1 ? 0x3244 : 0x1044);
      } else if constexpr (Traits::kMinimum) {
        scale = half_of(scales.of[side][word], selector);
        minimum = half_of(scales.minima[side][word], selector);
      } else {
        scale = __uint_as_float(scales.of[side][word]);
        if constexpr (Traits::kFp8) scale *= kFp8SumFactor;
      }
#pragma unroll
      for (int r = 0; r < active; ++r)
#pragma unroll
        for (int j = 0; j < (one ? 1 : 2); ++j) {
          float& sum = sums[r][2 * side + j];
          sum = fmaf(scale, raw[r][2 * side + j], sum);
          if constexpr (Traits::kMinimum) sum = fmaf(minimum, of_x[r][j], sum);
        }
    }
  }

  __device__ static float half_of(uint32_t word, uint32_t selector) {
    const uint32_t high = __byte_perm(word, 0, selector);
    if constexpr (Traits::kHalfScales)
      return __half2float(__ushort_as_half(static_cast<uint16_t>(high >> 16)));
    return __uint_as_float(high);
  }

  const int lane_ = static_cast<int>(threadIdx.x) % kWarp;
  const int group_ = lane_ / 4, quarter_ = lane_ % 4;  // of a fragment of mma
  /// Where 16 bytes of the lane are in a tile, of its row of the first eight.
  const uint32_t codes_ =
      static_cast<uint32_t>(row_at(group_) * kStreamStepBytes +
                            ((Traits::kBits == 4 ? quarter_ / 2 : quarter_) ^ row_at(group_)) * 16);
  uint32_t table_;
  int block_shift_;
};

}  // namespace mixtral::cuda
