#pragma once

#include <bit>
#include <cstdint>

namespace mixtral::ops {

// Weights of 8 bits. A code is an 8-bit float e4m3 (OCP 8-bit floating point, without infinities: 1
// sign, 4 exponent and 3 fraction bits, largest value 448); a block of 128 shares a scale, which is
// a power of two.

/// The scale of an fp8 block whose largest magnitude has the bits `largest`: the smallest power of
/// two, 2^-126 at least, under which nothing exceeds 464, which rounds to 448. A power of two loses
/// nothing beside an e4m3's own rounding, and makes every product of a code and its scale exact, in
/// bf16 too.
constexpr uint32_t fp8_scale_bits(uint32_t largest) {
  const uint32_t exponent = (largest >> 23) + ((largest & 0x7fffffu) > 0x680000u ? 1u : 0u);
  return (exponent > 9 ? exponent - 8 : 1u) << 23;
}

/// The e4m3 nearest to a value of magnitude up to 464; ties go to the even code. A tiny value keeps
/// its sign.
inline uint8_t to_e4m3(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 24 & 0x80u, magnitude = bits & 0x7fffffffu;
  uint32_t code = 0;
  if (magnitude >= 0x3c800000u) {  // 2^-6 and more: normal
    const uint32_t rebased = magnitude - (120u << 23);
    code = (rebased + 0x7ffffu + (rebased >> 20 & 1u)) >> 20;
  } else {  // multiples of 2^-9: an addition whose last place is that does the rounding
    code = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 16384.0f) -
           std::bit_cast<uint32_t>(16384.0f);
  }
  return static_cast<uint8_t>(sign | code);
}

/// The value of an e4m3 that is a number.
inline float from_e4m3(uint8_t code) {
  const uint32_t sign = uint32_t{code & 0x80u} << 24, rest = code & 0x7fu;
  const float magnitude = rest < 8 ? static_cast<float>(rest) * 0x1p-9f
                                   : std::bit_cast<float>((rest << 20) + (120u << 23));
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
}

}  // namespace mixtral::ops
