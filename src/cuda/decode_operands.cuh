#pragma once

#include <cuda_fp8.h>

#include <type_traits>

#include "cuda/flash.cuh"
#include "cuda/mma.cuh"
#include "cuda/sequences.cuh"

/// The operands of attention's products in decoding (attention_decode.cu): keys, values and queries
/// in registers, as tensor cores take them.
namespace mixtral::cuda {

template <int bytes>
struct alignas(bytes) Words {
  uint32_t at[bytes / 4];
};

/// A word of codes as two pairs of f16, or of 16-bit numbers as themselves.
template <class K>
__device__ inline uint2 pairs_of_codes(uint32_t word) {
  if constexpr (std::is_same_v<K, Fp8Code>) {
    const __half2_raw low =
        __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(word), __NV_E4M3);
    const __half2_raw high =
        __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(word >> 16), __NV_E4M3);
    return {low.x | uint32_t{low.y} << 16, high.x | uint32_t{high.y} << 16};
  } else {
    // 1024 + (128 + code) in f16, less 1152.
    const uint32_t codes = word ^ 0x80808080u;
    const auto pair = [&](unsigned selector) {
      const uint32_t biased = __byte_perm(codes, 0x64646464u, selector), bias = 0x64806480u;
      const __half2 exact =
          __hsub2(reinterpret_cast<const __half2&>(biased), reinterpret_cast<const __half2&>(bias));
      return reinterpret_cast<const uint32_t&>(exact);
    };
    return {pair(0x4140), pair(0x4342)};
  }
}

/// c += a b for 16 × 16 by 16 × 8, in bf16 or in f16.
template <bool bf16>
__device__ inline void multiply_tile(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                     uint32_t b1) {
  if constexpr (bf16)
    mma(c, a, b0, b1);
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Transposes an 8 × 8 matrix of 16-bit numbers in which each lane holds a pair; returns its pair.
__device__ inline uint32_t transpose(uint32_t pair) {
  uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pair));
  return result;
}

template <bool bf16>
__device__ inline uint32_t pack_pair(float low, float high) {
  if constexpr (bf16) {
    return pack_bf16(low, high);
  } else {
    const __half2 both = __floats2half2_rn(low, high);
    return reinterpret_cast<const uint32_t&>(both);
  }
}

template <int stages>
__device__ inline void wait_for_oldest() {
  asm volatile("cp.async.wait_group %0;" ::"n"(stages - 1) : "memory");
}

__device__ inline float log2_fast(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// A block's query heads as the products' second operand: a lane has head lane / 4, and of every
/// step of 16 columns those that it has of the keys.
template <class K, int width>
struct Query {
  static constexpr int kSteps = width / 16, kElements = 16 / static_cast<int>(sizeof(K));
  static constexpr bool kBf16 = std::is_same_v<K, Bf16>;
  uint32_t pair[kSteps][2];
  float factor[2];  // of the scores of heads 2 (lane mod 4) and + 1, to units of log 2

  __device__ Query(const CachedSource<K>& op, int token, int first_head, int count) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, head = lane / 4, c = lane % 4;
    Words<8> words[kSteps];
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      constexpr int kOfPiece = kElements / 4;
      const int column = (s / kOfPiece * 4 + c) * kElements + s % kOfPiece * 4;
      words[s] = {};
      if (head < count && column < op.width)
        words[s] = *reinterpret_cast<const Words<8>*>(op.query(token, first_head + head) + column);
    }
    factor[0] = factor[1] = op.scale * kLog2E;
    if constexpr (kBf16) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s)
#pragma unroll
        for (int i = 0; i < 2; ++i) pair[s][i] = words[s].at[i];
    } else {
      narrow(words);
    }
  }

 private:
  /// Divides by the power of two that is next below the head's largest number, for f16's range.
  __device__ void narrow(const Words<8> (&words)[kSteps]) {
    const auto value = [&](int s, int i) {
      const uint32_t word = words[s].at[i / 2];
      return __uint_as_float(i % 2 == 0 ? word << 16 : word & 0xffff0000u);
    };
    float largest = 0;
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
#pragma unroll
      for (int i = 0; i < 4; ++i) largest = fmaxf(largest, fabsf(value(s, i)));
    largest = warp_reduce<4>(largest, Max{});
    const uint32_t exponent = min(max(__float_as_uint(largest) >> 23, 1u), 253u);
    const float inverse = __uint_as_float((254 - exponent) << 23);
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        pair[s][i] = pack_pair<false>(value(s, 2 * i) * inverse, value(s, 2 * i + 1) * inverse);
    const float power = __uint_as_float(exponent << 23);
#pragma unroll
    for (int i = 0; i < 2; ++i)
      factor[i] *= __shfl_sync(kAllLanes, power, (2 * (threadIdx.x % 4) + i) * 4);
  }
};

}  // namespace mixtral::cuda
