#pragma once

#include "cuda/device.cuh"
#include "cuda/fixed_rows.h"

namespace mixtral::cuda {

constexpr int kFixedUnit = 8;   // columns of a lane
constexpr int kFixedUnits = 8;  // lanes that share a scale

/// Writes a lane's unit of a row in fixed point: eight numbers of bf16, as they lie. All lanes of a
/// warp take part, and have units side by side, the first of 64 columns in a lane that is a
/// multiple of 8. Those for which `inside` is false write nothing.
__device__ inline void fix_unit(const uint4& numbers, int64_t row, int unit, bool inside,
                                const FixedRows& to) {
  // The largest of 64 numbers comes to 2^13 or more, below 2^14.
  constexpr uint32_t kPlaces = 13, kBias = 127, kLeastExponent = 27, kNotFinite = 255;
  constexpr uint32_t kMagnitudes = 0x7fff7fffu;
  const uint32_t most = __vmaxu2(__vmaxu2(numbers.x & kMagnitudes, numbers.y & kMagnitudes),
                                 __vmaxu2(numbers.z & kMagnitudes, numbers.w & kMagnitudes));
  const uint32_t exponent = warp_reduce<kFixedUnits>(max(most & 0xffffu, most >> 16), Max{}) >> 7;
  const bool finite = exponent < kNotFinite;
  const uint32_t used = min(max(exponent, kLeastExponent), kNotFinite - 1);
  const float factor = __uint_as_float((2 * kBias + kPlaces - used) << 23);
  const float scale =
      finite ? __uint_as_float((used - kPlaces) << 23) : __uint_as_float(0x7fc00000u);

  // A number in fixed point and 1.5 · 2^23 is a float that ends in the integer's bits; with 128
  // more, its second byte is the high byte. What comes of numbers that are not finite is not used.
  constexpr float kInteger = 12582912.0f, kHalf = 128;
  const bool fours = to.layout.bits == 4;
  const uint32_t pairs[4] = {numbers.x, numbers.y, numbers.z, numbers.w};
  uint32_t low_of[kFixedUnit], high_of[kFixedUnit], all_bits = 0;
#pragma unroll
  for (int i = 0; i < kFixedUnit; ++i) {
    const float number =
        __uint_as_float(i % 2 == 0 ? pairs[i / 2] << 16 : pairs[i / 2] & 0xffff0000u);
    low_of[i] = __float_as_uint(fmaf(number, factor, kInteger));
    high_of[i] = __float_as_uint(fmaf(number, factor, kInteger + kHalf));
    all_bits += low_of[i] - __float_as_uint(kInteger);
  }
  auto total = static_cast<int>(all_bits);
  const auto bytes_of = [](const uint32_t(&of)[kFixedUnit], int first, uint32_t pair) {
    return __byte_perm(__byte_perm(of[first], of[first + 1], pair),
                       __byte_perm(of[first + 2], of[first + 3], pair), 0x5410);
  };
  const uint32_t low[2] = {bytes_of(low_of, 0, 0x40), bytes_of(low_of, 4, 0x40)};
  const uint32_t high[2] = {bytes_of(high_of, 0, 0x51), bytes_of(high_of, 4, 0x51)};
  if (to.layout.sums == 1) total = warp_sum<kFixedUnits>(total);
  if (to.layout.sums == 2) total = warp_sum<kFixedUnits / 2>(total);
  if (!inside) return;
  const auto arranged = [&](const uint32_t(&bytes)[2]) -> uint2 {
    if (!fours) return {bytes[0], bytes[1]};
    return {__byte_perm(bytes[0], bytes[1], 0x6420), __byte_perm(bytes[0], bytes[1], 0x7531)};
  };
  const int group = unit / kFixedUnits, of_group = unit % kFixedUnits;
  const int place = to.layout.planes ? of_group % 4 * 2 + of_group / 4 : of_group;
  char* const bytes = to.bytes + row * 2 * to.padded + group * 128 + place * kFixedUnit;
  *reinterpret_cast<uint2*>(bytes) = arranged(high);
  *reinterpret_cast<uint2*>(bytes + 64) = arranged(low);
  const int64_t at = row * (to.padded / 64) + group;
  if (of_group == 0) to.scales[at] = fours ? scale / 16 : scale;
  const float all = static_cast<float>(total) * scale;
  const float rounded = __uint_as_float(__float_as_uint(all) & 0xffffe000u);
  const float2 sum = {rounded, all - rounded};
  if (to.layout.sums == 1 && of_group == 0) to.sums[at] = sum;
  if (to.layout.sums == 2 && of_group % 4 == 0) to.sums[at * 2 + of_group / 4] = sum;
}

}  // namespace mixtral::cuda
