#include "io/convert.h"

#include <cmath>
#include <cstring>
#include <string>

namespace mixtral {
namespace {

// f64 to a 16-bit type goes through float, first rounded to odd: a plain double rounding would
// differ from rounding once.
float round_to_odd(double value) {
  const float nearest = static_cast<float>(value);
  if (static_cast<double>(nearest) == value || !std::isfinite(nearest)) return nearest;
  auto word = std::bit_cast<uint32_t>(nearest);
  if (word & 1u) return nearest;
  // Of the two neighbours of the value one is odd; the even one was chosen, so step to the other.
  const bool away = std::abs(value) > std::abs(static_cast<double>(nearest));
  return std::bit_cast<float>(away ? word + 1 : word - 1);
}

template <class To, class From>
To convert_one(From value) {
  if constexpr (std::is_same_v<To, From>) {
    return value;
  } else if constexpr (std::is_same_v<From, double>) {
    if constexpr (std::is_same_v<To, float>)
      return static_cast<float>(value);
    else
      return To(round_to_odd(value));
  } else if constexpr (std::is_same_v<To, double>) {
    return static_cast<double>(static_cast<float>(value));
  } else if constexpr (std::is_same_v<To, float>) {
    return static_cast<float>(value);
  } else {
    return To(static_cast<float>(value));
  }
}

template <class From, class To>
void convert_all(const std::byte* from, std::byte* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    From value;
    std::memcpy(&value, from + i * static_cast<int64_t>(sizeof(From)), sizeof(From));
    const To result = convert_one<To>(value);
    std::memcpy(to + i * static_cast<int64_t>(sizeof(To)), &result, sizeof(To));
  }
}

template <class From>
void convert_from(const std::byte* from, std::byte* to, Dtype to_dtype, int64_t count) {
  switch (to_dtype) {
    case Dtype::f64:
      return convert_all<From, double>(from, to, count);
    case Dtype::f32:
      return convert_all<From, float>(from, to, count);
    case Dtype::bf16:
      return convert_all<From, bf16>(from, to, count);
    case Dtype::f16:
      return convert_all<From, f16>(from, to, count);
    default:
      CHECK(false);
  }
}

// A number of this storage type is not finite when all its exponent bits are set.
template <class Word>
int64_t first_with_full_exponent(const std::byte* data, int64_t count, Word mask) {
  constexpr int64_t kBlock = 4096;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = std::min(count, begin + kBlock);
    bool any = false;
    for (int64_t i = begin; i < end; ++i) {
      Word word;
      std::memcpy(&word, data + i * static_cast<int64_t>(sizeof(Word)), sizeof(Word));
      any |= (word & mask) == mask;
    }
    if (!any) continue;
    for (int64_t i = begin; i < end; ++i) {
      Word word;
      std::memcpy(&word, data + i * static_cast<int64_t>(sizeof(Word)), sizeof(Word));
      if ((word & mask) == mask) return i;
    }
  }
  return -1;
}

}  // namespace

void convert_elements(const std::byte* from, Dtype from_dtype, std::byte* to, Dtype to_dtype,
                      int64_t count) {
  CHECK(convertible(from_dtype, to_dtype));
  if (count == 0) return;
  if (from_dtype == to_dtype) {
    std::memcpy(to, from, static_cast<size_t>(count * size_of(from_dtype)));
    return;
  }
  switch (from_dtype) {
    case Dtype::f64:
      return convert_from<double>(from, to, to_dtype, count);
    case Dtype::f32:
      return convert_from<float>(from, to, to_dtype, count);
    case Dtype::bf16:
      return convert_from<bf16>(from, to, to_dtype, count);
    case Dtype::f16:
      return convert_from<f16>(from, to, to_dtype, count);
    default:
      CHECK(false);
  }
}

int64_t find_non_finite(const std::byte* data, Dtype dtype, int64_t count) {
  switch (dtype) {
    case Dtype::f64:
      return first_with_full_exponent<uint64_t>(data, count, 0x7ff0000000000000u);
    case Dtype::f32:
      return first_with_full_exponent<uint32_t>(data, count, 0x7f800000u);
    case Dtype::bf16:
      return first_with_full_exponent<uint16_t>(data, count, 0x7f80u);
    case Dtype::f16:
      return first_with_full_exponent<uint16_t>(data, count, 0x7c00u);
    default:
      return -1;
  }
}

}  // namespace mixtral
