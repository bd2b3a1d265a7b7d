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
  float scale = 0;
};

Head packed(const std::vector<float>& values) {
  std::vector<uint8_t> bytes(
      static_cast<size_t>(cached_width(Dtype::u8, static_cast<int64_t>(values.size()))));
  pack_head(values, bytes.data());
  Head head;
  for (size_t i = 0; i < values.size(); ++i) head.codes.push_back(static_cast<int8_t>(bytes[i]));
  head.scale = scale_of_head(bytes.data(), static_cast<int64_t>(values.size()));
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
  for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
    const Head head = packed({1, bad, 2});
    EXPECT_TRUE(std::isnan(head.scale));
  }
}

}  // namespace
}  // namespace mixtral::ops
