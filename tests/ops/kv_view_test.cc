#include "ops/kv_view.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/random.h"

namespace mixtral::ops {
namespace {

struct Head {
  std::vector<int> codes;
  std::vector<float> numbers;  // the codes', without the scale
  float scale = 0;
};

Head packed(const std::vector<float>& values, CacheType type = CacheType::int8) {
  std::vector<uint8_t> codes(values.size());
  Head head;
  head.scale = pack_head(type, values, codes.data());
  for (const uint8_t code : codes) {
    head.codes.push_back(static_cast<int8_t>(code));
    head.numbers.push_back(unpack_code(type, code));
  }
  return head;
}

TEST(HeadsInEightBits, AreWithinHalfAStepOfTheirNumbers) {
  RandomStream random(3, 0);
  for (const double size : {1e-20, 0.01, 1.0, 1e20}) {
    std::vector<float> values;
    for (int i = 0; i < 128; ++i) values.push_back(static_cast<float>(size * random.normal()));
    const Head head = packed(values);
    float largest = 0;
    for (const float value : values) largest = std::max(largest, std::abs(value));
    EXPECT_EQ(head.scale, largest / 127);
    int most = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      const double error = static_cast<double>(static_cast<float>(head.codes[i]) * head.scale) -
                           static_cast<double>(values[i]);
      EXPECT_LE(std::abs(error), static_cast<double>(head.scale) * 0.50001) << i;
      most = std::max(most, std::abs(head.codes[i]));
    }
    EXPECT_EQ(most, 127);
  }
}

TEST(HeadsInEightBits, RoundTiesToEvenAndKeepZeros) {
  const Head head = packed({127, 0.5F, 1.5F, 2.5F, -0.5F, -127, 0});
  EXPECT_EQ(head.scale, 1);
  EXPECT_EQ(head.codes, (std::vector<int>{127, 0, 2, 2, 0, -127, 0}));
  const Head zeros = packed({0, 0, 0, 0});
  EXPECT_EQ(zeros.codes, (std::vector<int>{0, 0, 0, 0}));
  EXPECT_EQ(zeros.scale, 0);
}

TEST(HeadsInEightBits, ShowNumbersThatAreNotFinite) {
  for (const CacheType type : {CacheType::int8, CacheType::fp8})
    for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
      const Head head = packed({1, bad, 2}, type);
      EXPECT_TRUE(std::isnan(head.scale));
    }
}

TEST(HeadsInFp8, AreWithinHalfAnUlpOfTheirNumbers) {
  RandomStream random(4, 0);
  for (const double size : {1e-20, 0.01, 1.0, 1e20}) {
    std::vector<float> values;
    for (int i = 0; i < 128; ++i) values.push_back(static_cast<float>(size * random.normal()));
    const Head head = packed(values, CacheType::fp8);
    float largest = 0;
    for (const float value : values) largest = std::max(largest, std::abs(value));
    int exponent = 0;
    EXPECT_EQ(std::frexp(head.scale, &exponent), 0.5F);  // a power of two
    EXPECT_LE(largest, head.scale * 464);
    EXPECT_GT(largest, head.scale * 232);
    for (size_t i = 0; i < values.size(); ++i) {
      const float error = std::abs(head.numbers[i] * head.scale - values[i]);
      // 2^-4 of the number, or half of the least step, 2^-9 of the scale.
      EXPECT_LE(error, std::max(std::abs(values[i]) * 0x1p-4F, head.scale * 0x1p-10F)) << i;
    }
  }
}

TEST(HeadsInFp8, RoundTiesToEvenAndKeepZeros) {
  const Head head = packed({448, 17, 19, -17, 0x1p-10F, 0x1.8p-9F, 0}, CacheType::fp8);
  EXPECT_EQ(head.scale, 1);
  EXPECT_EQ(head.numbers, (std::vector<float>{448, 16, 20, -16, 0, 0x1p-8F, 0}));
  const Head zeros = packed({0, 0, 0, 0}, CacheType::fp8);
  EXPECT_EQ(zeros.numbers, (std::vector<float>{0, 0, 0, 0}));
  EXPECT_EQ(zeros.scale, 0);
}

TEST(CodedPages, HaveCodesAndThenScalesByHead) {
  const CodedPages pages{.tokens = 4, .heads = 2, .width = 6};
  EXPECT_EQ(pages.page_bytes(), 4 * 2 * (6 + 4));
  EXPECT_EQ(pages.codes(1, 2, 1), 80 + 2 * 12 + 6);
  EXPECT_EQ(pages.scale(1, 2, 1), 80 + 48 + 4 * (4 + 2));
}

}  // namespace
}  // namespace mixtral::ops
