#pragma once

#include "cuda/device.cuh"
#include "ops/format_nf4.h"

/// How streamed products read weights of each format: in registers, never as a copy. A step of a
/// warp is 64 bytes of each row's codes. Codes become pairs of bf16 in which they are exact (nf4's
/// levels are rounded), tensor cores sum their products over 64 columns, and the sums are scaled in
/// f32.
namespace mixtral::cuda {

/// Integers of 4 and 8 bits have a scale and a minimum a block, both bf16 or both f16.
enum class StreamCodec { bf16, fp8, nf4, int4, int8 };

template <StreamCodec codec>
struct StreamTraits {
  static constexpr int kBits = codec == StreamCodec::bf16                                ? 16
                               : codec == StreamCodec::fp8 || codec == StreamCodec::int8 ? 8
                                                                                         : 4;
  static constexpr int kColumns = 64 * 8 / kBits;     // of a step
  static constexpr int kXParts = kColumns / 32;       // of 16 bytes, of a lane
  static constexpr int kGroups = kBits == 4 ? 2 : 1;  // of columns with scales of their own
  static constexpr int kWords = 4 / kGroups;          // of a lane's codes, in a group
  static constexpr bool kScaled = codec != StreamCodec::bf16;
  static constexpr bool kMinimum = codec == StreamCodec::int4 || codec == StreamCodec::int8;
  static constexpr bool kTable = codec == StreamCodec::nf4;
};

/// Bytes of nf4's table in shared memory: the pair of levels of each byte, once a lane, so that
/// lanes never wait for each other.
constexpr int kLevelTableBytes = 256 * kWarp * 4;

__constant__ float kStreamLevels[16] = {
    ops::kNormalLevels[0],  ops::kNormalLevels[1],  ops::kNormalLevels[2],  ops::kNormalLevels[3],
    ops::kNormalLevels[4],  ops::kNormalLevels[5],  ops::kNormalLevels[6],  ops::kNormalLevels[7],
    ops::kNormalLevels[8],  ops::kNormalLevels[9],  ops::kNormalLevels[10], ops::kNormalLevels[11],
    ops::kNormalLevels[12], ops::kNormalLevels[13], ops::kNormalLevels[14], ops::kNormalLevels[15],
};

/// Fills the table; the block's threads meet before it is read.
__device__ inline void make_level_table(uint32_t* table) {
  for (int i = static_cast<int>(threadIdx.x); i < 256 * kWarp; i += static_cast<int>(blockDim.x)) {
    const int byte = i / kWarp;
    table[i] = pack_bf16(kStreamLevels[byte & 15], kStreamLevels[byte >> 4]);
  }
}

__device__ inline uint32_t multiply_bf16(uint32_t a, uint32_t b) {
  const __nv_bfloat162 product = __hmul2(reinterpret_cast<const __nv_bfloat162&>(a),
                                         reinterpret_cast<const __nv_bfloat162&>(b));
  return reinterpret_cast<const uint32_t&>(product);
}

/// A word of codes as pairs of bf16. In int4, a pair is of columns i and i + 4 of the word's eight;
/// elsewhere of neighbours. int8: first the pairs of low halves of the codes, then of high ones.
template <StreamCodec codec>
struct StreamWord {
  static constexpr int kPairs = codec == StreamCodec::fp8 ? 2 : 4;
  uint32_t pair[kPairs];

  /// `table`: nf4's, from this lane's column on.
  __device__ StreamWord(uint32_t word, const uint32_t* table) {
    if constexpr (codec == StreamCodec::fp8) {
      // Sign, exponent and fraction to their places in a bf16; 2^120 makes good the bias.
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t spread = __byte_perm(word, 0, i == 0 ? 0x1404 : 0x3424);
        const uint32_t moved = (spread & 0x7f007f00u) >> 4 | (spread & 0x80008000u);
        pair[i] = multiply_bf16(moved, 0x7b807b80u);
      }
    } else if constexpr (codec == StreamCodec::nf4) {
#pragma unroll
      for (int i = 0; i < 4; ++i) pair[i] = table[(word >> (8 * i) & 255) * kWarp];
    } else if constexpr (codec == StreamCodec::int4) {
      // 128 + code: its last place is 1.
#pragma unroll
      for (int i = 0; i < 4; ++i) pair[i] = (word >> (4 * i) & 0x000f000fu) | 0x43004300u;
    } else {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t spread = __byte_perm(word, 0, i == 0 ? 0x4140 : 0x4342);
        pair[i] = (spread & 0x000f000fu) | 0x43004300u;
        pair[2 + i] = (spread >> 4 & 0x000f000fu) | 0x43004300u;
      }
    }
  }
};

/// What the pairs of int4 and int8 have more than the codes.
template <StreamCodec codec>
constexpr float kStreamOffset = codec == StreamCodec::int8 ? 128 * 17 : 128;

}  // namespace mixtral::cuda
