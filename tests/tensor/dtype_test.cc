#include "tensor/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/random.h"

namespace mixtral {
namespace {

// A slow model of a binary format: the value nearest to `value`, ties to even, from the definition.
struct Format {
  int precision;       // bits after the leading one
  int least_exponent;  // of a normal number
  int bias;

  uint32_t exponents() const { return 2 * static_cast<uint32_t>(bias) + 1; }
  int width() const { return precision; }

  // The bits without the sign.
  uint32_t round(double magnitude) const {
    const uint32_t infinity = exponents() << precision;
    if (std::isinf(magnitude)) return infinity;
    if (magnitude == 0) return 0;
    const int exponent = std::max(std::ilogb(magnitude), least_exponent);
    const double units = std::nearbyint(std::ldexp(magnitude, precision - exponent));
    // `units` counts steps of the binade; carrying into the next one is what its size does.
    const auto steps = static_cast<uint32_t>(units);
    const uint32_t bits = (static_cast<uint32_t>(exponent - least_exponent) << precision) + steps;
    return std::min(bits, infinity);
  }

  double value(uint32_t bits) const {
    const uint32_t field = bits >> precision;
    const double fraction = static_cast<double>(bits & ((1u << precision) - 1));
    if (field == exponents())
      return fraction == 0 ? std::numeric_limits<double>::infinity() : std::nan("");
    if (field == 0) return std::ldexp(fraction, least_exponent - precision);
    return std::ldexp(fraction + std::ldexp(1.0, precision),
                      static_cast<int>(field) - bias - precision);
  }
};

constexpr Format kBf16{7, -126, 127};
constexpr Format kF16{10, -14, 15};

template <class T>
class HalfTest : public testing::Test {};
using HalfTypes = testing::Types<bf16, f16>;
TYPED_TEST_SUITE(HalfTest, HalfTypes);

template <class T>
constexpr Format format_of() {
  return std::is_same_v<T, bf16> ? kBf16 : kF16;
}

template <class T>
T from_bits(uint32_t bits) {
  T value;
  value.bits = static_cast<uint16_t>(bits);
  return value;
}

template <class T>
void expect_rounded(float value) {
  const uint16_t bits = T(value).bits;
  if (std::isnan(value)) {
    EXPECT_TRUE(std::isnan(static_cast<float>(T(value)))) << value;
    return;
  }
  const uint32_t expected = format_of<T>().round(std::abs(static_cast<double>(value))) |
                            (std::signbit(value) ? 0x8000u : 0u);
  ASSERT_EQ(bits, expected) << std::hexfloat << value;
}

TYPED_TEST(HalfTest, EveryPatternHasItsValueAndComesBack) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto value = static_cast<float>(from_bits<TypeParam>(bits));
    const double expected = format_of<TypeParam>().value(bits & 0x7fffu);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(value)) << bits;
      ASSERT_TRUE(std::isnan(static_cast<float>(TypeParam(value)))) << bits;
      continue;
    }
    ASSERT_EQ(std::abs(static_cast<double>(value)), expected) << bits;
    ASSERT_EQ(std::signbit(value), bits >= 0x8000u) << bits;
    ASSERT_EQ(TypeParam(value).bits, bits);
  }
}

TYPED_TEST(HalfTest, RoundsToNearestEvenAroundEveryMiddle) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (uint32_t bits = 0;
       bits + 1 < format_of<TypeParam>().exponents() << format_of<TypeParam>().width(); ++bits) {
    const double low = format_of<TypeParam>().value(bits);
    const double high = format_of<TypeParam>().value(bits + 1);
    const auto middle = static_cast<float>((low + high) / 2);
    for (const float value :
         {middle, std::nextafter(middle, 0.f), std::nextafter(middle, infinity)}) {
      expect_rounded<TypeParam>(value);
      expect_rounded<TypeParam>(-value);
    }
  }
}

TYPED_TEST(HalfTest, RoundsAnyFloat) {
  RandomStream random(5);
  for (int i = 0; i < 300000; ++i)
    expect_rounded<TypeParam>(std::bit_cast<float>(static_cast<uint32_t>(random.next())));
  for (const float value :
       {0.f, -0.f, 1e-45f, 65504.f, 65519.99f, 65520.f, 65536.f, std::numeric_limits<float>::max(),
        std::numeric_limits<float>::min(), std::numeric_limits<float>::infinity(),
        std::numeric_limits<float>::quiet_NaN()}) {
    expect_rounded<TypeParam>(value);
    expect_rounded<TypeParam>(-value);
  }
}

TEST(HalfTypes, NanStaysNanWhateverItsBits) {
  for (uint32_t payload = 1; payload < 0x800000u; payload += 127)
    for (const uint32_t sign : {0u, 0x80000000u}) {
      const auto nan = std::bit_cast<float>(sign | 0x7f800000u | payload);
      ASSERT_TRUE(std::isnan(static_cast<float>(bf16(nan))));
      ASSERT_TRUE(std::isnan(static_cast<float>(f16(nan))));
    }
}

TEST(Dtype, SizesAndNames) {
  EXPECT_EQ(size_of(Dtype::f64), 8);
  EXPECT_EQ(size_of(Dtype::i64), 8);
  EXPECT_EQ(size_of(Dtype::f32), 4);
  EXPECT_EQ(size_of(Dtype::bf16), 2);
  EXPECT_EQ(size_of(Dtype::u8), 1);
  EXPECT_EQ(to_string(Dtype::bf16), "bf16");
  EXPECT_TRUE(is_float(Dtype::f16));
  EXPECT_FALSE(is_float(Dtype::i32));
}

}  // namespace
}  // namespace mixtral
