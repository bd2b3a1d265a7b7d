#pragma once

#include "cuda/device.cuh"
#include "cuda/fixed_rows.h"
#include "cuda/stream_task.h"
#include "ops/format_nf4.h"

/// How streamed products read weights of each format: in registers, never as a copy. Integer codes
/// stay integers of 8 bits and are multiplied by x in fixed point (fixed_rows.h). fp8's codes
/// become pairs of bf16 in which they are exact; nf4's levels are rounded. Tensor cores sum the
/// products over the columns that share a scale, at most 64, and the sums are scaled in f32.
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
  /// Integers, multiplied by x in fixed point.
  static constexpr bool kInteger = kInt4 || kInt8 || kPlanes;
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
  /// Codes are integers with a sign: those of q8_0, and those of q4_0 less 8.
  static constexpr bool kSigned = kQ8 || codec == StreamCodec::q4_0;
  /// Sums of x that minima are multiplied by: of 64 columns or of 32.
  static constexpr int kXSums = !kMinimum ? 0 : kQ4k ? 2 : 1;  // in 64 columns
  /// Words of scales of a row and step (of each of scales and minima), at most.
  static constexpr int kScaleWords = kTable || kQ4 ? 4 : kInt4 || kQ8 ? 2 : 1;
  static constexpr int kScaleArrays = kMinima ? 2 : 1;
  /// Lanes that copy them: one a row, or one a row for the scales and one for the minima.
  static constexpr int kScaleLanes = 16 * kScaleArrays;
  static constexpr bool kHalfScales = codec == StreamCodec::int4_half ||
                                      codec == StreamCodec::int8_half ||
                                      codec == StreamCodec::q4_0 || kQ8;
};

/// How x is laid out for integer codes.
template <StreamCodec codec>
constexpr FixedLayout kFixedLayout = {.bits = StreamTraits<codec>::kBits,
                                      .planes = StreamTraits<codec>::kPlanes,
                                      .sums = StreamTraits<codec>::kXSums,
                                      .pad_columns = 2 * StreamTraits<codec>::kColumns};

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

/// Has the first-level cache fetch what is around `from`.
__device__ inline void fetch_word(const void* from) {
  [[maybe_unused]] uint32_t unused;
  asm volatile("ld.global.u32 %0, [%1];" : "=r"(unused) : "l"(from));
}

/// A word of codes as pairs of bf16. In fp8 a pair is of columns i and i + 2 of the word's four; in
/// nf4, of neighbours.
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
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        pair[i] = shared_word(table + __byte_perm(word, 0, 0x4440 + i) * (kWarp * 4));
    }
  }
};

/// fp8's pairs are 2^-120 of the numbers. x is multiplied by 2^80 and the sums by 2^40, so that
/// products neither overflow nor become subnormal.
constexpr uint32_t kFp8XFactor = 0x67806780u;
constexpr float kFp8SumFactor = 0x1p40f;

}  // namespace mixtral::cuda
