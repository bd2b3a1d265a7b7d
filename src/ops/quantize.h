#pragma once

#include <bit>

#include "ops/common.h"

namespace mixtral::ops {

/// How weights are rounded to few bits: in blocks along each row, one scale (f32) a block. The last
/// block of a row may be shorter; blocks never span rows.
///   fp8: blocks of 128; a code is an 8-bit float e4m3 (OCP 8-bit floating point, without
///     infinities: 1 sign, 4 exponent and 3 fraction bits, largest value 448).
///   nf4: blocks of 64; a code is one of the 16 levels kNormalLevels (Dettmers et al. 2023,
///     "QLoRA"), two codes a byte, the even column's in the low half.
enum class Quantization : uint8_t { fp8, nf4 };

constexpr std::string_view to_string(Quantization quantization) {
  return quantization == Quantization::fp8 ? "fp8" : "nf4";
}
/// Elements that share a scale.
constexpr int64_t block_of(Quantization quantization) {
  return quantization == Quantization::fp8 ? 128 : 64;
}
/// Bytes of the codes of a row of `columns` elements.
constexpr int64_t code_bytes(Quantization quantization, int64_t columns) {
  return quantization == Quantization::fp8 ? columns : (columns + 1) / 2;
}
/// Scales of a row of `columns` elements.
constexpr int64_t scale_count(Quantization quantization, int64_t columns) {
  return (columns + block_of(quantization) - 1) / block_of(quantization);
}

/// The levels of nf4: quantiles of the normal distribution, made to span [-1, 1] and to contain 0.
inline constexpr float kNormalLevels[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};
inline constexpr int kZeroLevel = 7;
/// The number halfway between levels i and i + 1, in f32. A level is nearest to what lies above the
/// midpoint below it and not above the one above it: ties go down.
constexpr float normal_midpoint(int i) { return (kNormalLevels[i] + kNormalLevels[i + 1]) * 0.5f; }

/// The scale of an fp8 block whose largest magnitude has the bits `largest`: the smallest power of
/// two, 2^-126 at least, under which nothing exceeds 464, which rounds to 448. A power of two loses
/// nothing beside an e4m3's own rounding, and makes every product of a code and its scale exact, in
/// bf16 too.
constexpr uint32_t fp8_scale_bits(uint32_t largest) {
  const uint32_t exponent = (largest >> 23) + ((largest & 0x7fffffu) > 0x680000u ? 1u : 0u);
  return (exponent > 9 ? exponent - 8 : 1u) << 23;
}

/// The e4m3 that is nearest to a value with the bits `bits`, of magnitude up to 464; ties go to the
/// even code. A tiny value's sign stays.
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

/// codes, scales = x rounded. With x first rounded to f32, and a block's largest magnitude m:
///   fp8: scale = the smallest power of two >= m / 464; a code is the e4m3 nearest to x / scale,
///     ties to even.
///   nf4: scale = m; a code is the level nearest to x / scale (the quotient in f32), ties down.
/// A block of zeros has scale 0 and the codes of +0. x must be finite: where it is not, the block's
/// codes and scale are unspecified. The unused half of a row's last byte is 0. What Dequantize
/// gives has the same codes again, unless it is below 2^-126.
struct Quantize {
  static constexpr std::string_view kName = "quantize";
  Tensor x;       // [rows, columns] of any floating-point type
  Tensor codes;   // [rows, code_bytes(columns)] u8
  Tensor scales;  // [rows, scale_count(columns)] f32
  Quantization quantization = Quantization::fp8;
};

/// y = value of the code · scale, in f32, then rounded to y's type (fp8 to bf16: exact).
struct Dequantize {
  static constexpr std::string_view kName = "dequantize";
  Tensor codes;   // [rows, code_bytes(columns)] u8
  Tensor scales;  // [rows, scale_count(columns)] f32
  Tensor y;       // [rows, columns] of any floating-point type
  Quantization quantization = Quantization::fp8;
  /// [G+1] i32, as a product's: y is G matrices one above another, and those of groups without rows
  /// need not be written. Or empty.
  Tensor offsets;
};

void check(const Quantize&);
void check(const Dequantize&);
Cost cost(const Quantize&);
Cost cost(const Dequantize&);

}  // namespace mixtral::ops
