#pragma once

#include <bit>
#include <cstdint>
#include <string_view>

#include "base/error.h"

namespace mixtral {

enum class Dtype : uint8_t { f64, f32, bf16, f16, i64, i32, u8 };

constexpr int64_t size_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::f64:
    case Dtype::i64:
      return 8;
    case Dtype::f32:
    case Dtype::i32:
      return 4;
    case Dtype::bf16:
    case Dtype::f16:
      return 2;
    case Dtype::u8:
      return 1;
  }
  return 0;
}

constexpr bool is_float(Dtype dtype) {
  return dtype == Dtype::f64 || dtype == Dtype::f32 || dtype == Dtype::bf16 || dtype == Dtype::f16;
}

constexpr std::string_view to_string(Dtype dtype) {
  switch (dtype) {
    case Dtype::f64:
      return "f64";
    case Dtype::f32:
      return "f32";
    case Dtype::bf16:
      return "bf16";
    case Dtype::f16:
      return "f16";
    case Dtype::i64:
      return "i64";
    case Dtype::i32:
      return "i32";
    case Dtype::u8:
      return "u8";
  }
  return "?";
}

/// Storage of a bfloat16: the upper half of a float. Rounds to nearest even; a NaN stays a NaN.
struct bf16 {
  uint16_t bits;

  bf16() = default;
  explicit bf16(float value) {
    const auto word = std::bit_cast<uint32_t>(value);
    if ((word & 0x7fffffffu) > 0x7f800000u)
      bits = static_cast<uint16_t>(word >> 16 | 0x40u);
    else
      bits = static_cast<uint16_t>((word + 0x7fffu + (word >> 16 & 1u)) >> 16);
  }
  explicit operator float() const { return std::bit_cast<float>(uint32_t{bits} << 16); }
};

/// Storage of an IEEE 754 half. Rounds to nearest even, overflows to infinity.
struct f16 {
  uint16_t bits;

  f16() = default;
  explicit f16(float value);
  explicit operator float() const;
};

inline f16::f16(float value) {
  const auto word = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>(word >> 16 & 0x8000u);
  const uint32_t magnitude = word & 0x7fffffffu;
  if (magnitude >= 0x7f800000u) {
    bits = static_cast<uint16_t>(sign | 0x7c00u | (magnitude > 0x7f800000u ? 0x200u : 0u));
  } else if (magnitude >= 0x477ff000u) {  // rounds to 65520 or more
    bits = static_cast<uint16_t>(sign | 0x7c00u);
  } else if (magnitude >= 0x38800000u) {  // normal
    const uint32_t rebased = magnitude - 0x38000000u;
    bits = static_cast<uint16_t>(sign | (rebased + 0xfffu + (rebased >> 13 & 1u)) >> 13);
  } else {  // subnormal: let the addition of 2^-1 * 2^-13 do the rounding
    const float aligned = std::bit_cast<float>(magnitude) + 0.5f;
    bits = static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(aligned) - 0x3f000000u));
  }
}

inline f16::operator float() const {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16;
  const uint32_t rest = bits & 0x7fffu;
  if (rest >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  if (rest >= 0x400u) return std::bit_cast<float>(sign | ((rest << 13) + 0x38000000u));
  const float value = static_cast<float>(rest) * 0x1p-24f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(value));
}

template <class T>
struct dtype_of_impl;
template <>
struct dtype_of_impl<double> {
  static constexpr Dtype value = Dtype::f64;
};
template <>
struct dtype_of_impl<float> {
  static constexpr Dtype value = Dtype::f32;
};
template <>
struct dtype_of_impl<bf16> {
  static constexpr Dtype value = Dtype::bf16;
};
template <>
struct dtype_of_impl<f16> {
  static constexpr Dtype value = Dtype::f16;
};
template <>
struct dtype_of_impl<int64_t> {
  static constexpr Dtype value = Dtype::i64;
};
template <>
struct dtype_of_impl<int32_t> {
  static constexpr Dtype value = Dtype::i32;
};
template <>
struct dtype_of_impl<uint8_t> {
  static constexpr Dtype value = Dtype::u8;
};
template <class T>
inline constexpr Dtype dtype_of = dtype_of_impl<T>::value;

}  // namespace mixtral
