#pragma once

#include "cuda/device.cuh"
#include "cuda/stream_task.h"
#include "ops/format_nf4.h"

/// How streamed products read weights of each format: in registers, never as a copy. Codes become
/// pairs of bf16 in which they are exact (nf4's levels are rounded), tensor cores sum their
/// products over 64 columns, and the sums are scaled in f32.
namespace mixtral::cuda {

template <StreamCodec codec>
struct StreamTraits {
  static constexpr bool kInt4 = codec == StreamCodec::int4 || codec == StreamCodec::int4_half;
  static constexpr bool kInt8 = codec == StreamCodec::int8 || codec == StreamCodec::int8_half;
  static constexpr bool kFp8 = codec == StreamCodec::fp8;
  static constexpr bool kTable = codec == StreamCodec::nf4;
  // GGUF's blocks.
  static constexpr bool kQ8 = codec == StreamCodec::q8_0;
  static constexpr bool kQ4k = codec == StreamCodec::q4_k;
  static constexpr bool kQ4 = codec == StreamCodec::q4_0 || kQ4k;
  static constexpr bool kPlanes = kQ8 || kQ4;
  static constexpr bool kFours = kInt4 || kQ4;  // integers of 4 bits
  static constexpr int kBits = codec == StreamCodec::bf16 ? 16 : kFp8 || kInt8 || kQ8 ? 8 : 4;
  static constexpr int kColumns = 64 * 8 / kBits;         // of half a step
  static constexpr int kGroups = kBits == 4 ? 2 : 1;      // of 64 columns; a lane's load of codes
  static constexpr int kXParts = kColumns / 32;           // of 16 bytes, of a lane
  static constexpr int kXWords = kColumns / kGroups / 8;  // of a lane's columns, in a group
  static constexpr int kWords = 4 / kGroups;              // of a lane's codes, in a group
  static constexpr int kScaleGroups = kPlanes ? 2 : 1;    // of a group: with scales of their own
  static constexpr bool kScaled = codec != StreamCodec::bf16;
  static constexpr bool kMinimum = kInt4 || kInt8 || kQ4k;
  static constexpr bool kMinima = kInt4 || kInt8;  // which stand apart from the scales
  /// Whether the pairs have more than the codes (kStreamOffset).
  static constexpr bool kOffset = kInt4 || kInt8 || kQ4;
  /// Words of scales of a row and step (of each of scales and minima), at most.
  static constexpr int kScaleWords = kTable || kQ4 ? 4 : kInt4 || kQ8 ? 2 : 1;
  /// Lanes that copy them: one a row, or one a row for the scales and one for the minima.
  static constexpr int kScaleLanes = kMinima ? kWarp : 16;
  static constexpr bool kHalfScales = codec == StreamCodec::int4_half ||
                                      codec == StreamCodec::int8_half ||
                                      codec == StreamCodec::q4_0 || kQ8;
};

/// Bytes of nf4's table in shared memory: the pair of levels of each byte, once a lane, so that
/// lanes never wait for each other.
constexpr int kLevelTableBytes = 256 * kWarp * 4;

[[maybe_unused]] static __constant__ float kStreamLevels[16] = {
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

__device__ inline uint32_t multiply_add_bf16(uint32_t a, uint32_t b, uint32_t c) {
  const __nv_bfloat162 sum = __hfma2(reinterpret_cast<const __nv_bfloat162&>(a),
                                     reinterpret_cast<const __nv_bfloat162&>(b),
                                     reinterpret_cast<const __nv_bfloat162&>(c));
  return reinterpret_cast<const uint32_t&>(sum);
}

/// (a & b) | c, and (a & b) ^ c: one instruction each, with both constants in registers.
__device__ inline uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
__device__ inline uint32_t and_xor(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

/// Loads from shared memory by its own addresses, which spares making them of generic ones.
template <int offset = 0>
__device__ inline uint32_t shared_word(uint32_t address) {
  uint32_t word;
  asm volatile("ld.shared.u32 %0, [%1+%2];" : "=r"(word) : "r"(address), "n"(offset));
  return word;
}
template <int offset = 0>
__device__ inline uint2 shared_words2(uint32_t address) {
  uint2 words;
  asm volatile("ld.shared.v2.u32 {%0,%1}, [%2+%3];"
               : "=r"(words.x), "=r"(words.y)
               : "r"(address), "n"(offset));
  return words;
}
template <int offset = 0>
__device__ inline uint4 shared_words4(uint32_t address) {
  uint4 words;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4+%5];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "r"(address), "n"(offset));
  return words;
}

/// A word of codes as pairs of bf16. In 4-bit integers, a pair is of columns i and i + 4 of the
/// word's eight; in codes of 8 bits, of i and i + 2 of its four; in nf4, of neighbours.
template <StreamCodec codec>
struct StreamWord {
  using Traits = StreamTraits<codec>;
  static constexpr int kPairs = Traits::kBits == 4 ? 4 : 2;
  uint32_t pair[kPairs];

  /// `table`: this lane's column of nf4's, in shared memory.
  __device__ StreamWord(uint32_t word, uint32_t table) {
    if constexpr (Traits::kFp8) {
      // Sign, exponent and fraction to their places in a bf16: 2^-120 of the number.
      pair[0] = and_or(word << 4, 0x07f007f0u, word << 8 & 0x80008000u);
      pair[1] = and_or(word >> 4, 0x07f007f0u, word & 0x80008000u);
    } else if constexpr (Traits::kTable) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        pair[i] = shared_word(table + __byte_perm(word, 0, 0x4440 + i) * (kWarp * 4));
    } else if constexpr (Traits::kFours) {
      // 128 + code: its last place is 1.
#pragma unroll
      for (int i = 0; i < 4; ++i) pair[i] = and_or(word >> (4 * i), 0x000f000fu, 0x43004300u);
    } else {
      // 128 + the low seven bits, and 128 less where the high bit is set, 256 less elsewhere; of
      // codes with a sign the other way round.
      constexpr uint32_t kClear = Traits::kQ8 ? 0xbf00bf00u : 0xbf80bf80u;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t codes = word >> (8 * i);
        const uint32_t low = and_or(codes, 0x007f007fu, 0x43004300u);
        const uint32_t high = and_xor(codes, 0x00800080u, kClear);  // -1/2 or -1
        pair[i] = multiply_add_bf16(high, 0x43804380u, low);
      }
    }
  }
};

/// What the pairs of integers have more than the codes; in q4_0 a code stands for 8 less.
template <StreamCodec codec>
constexpr float kStreamOffset = StreamTraits<codec>::kInt8   ? -128
                                : codec == StreamCodec::q4_0 ? 136
                                                             : 128;

/// fp8's pairs are 2^-120 of the numbers. x is multiplied by 2^80 and the sums by 2^40, so that
/// products neither overflow nor become subnormal.
constexpr uint32_t kFp8XFactor = 0x67806780u;
constexpr float kFp8SumFactor = 0x1p40f;

}  // namespace mixtral::cuda
