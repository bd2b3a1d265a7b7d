// The rounding of activations to e4m3: that of format fp8's blocks, with one scale a row.
#include "ops/rounding.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "base/random.h"

namespace mixtral::ops {
namespace {

TEST(RoundToE4m3, IsThatOfABlockOfTheFormat) {
  RandomStream random(20261129);
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<float> row(128), packed(128), rounded(128);
    const double size = std::exp2(static_cast<double>(random.below(60)) - 30);
    for (float& value : row) value = static_cast<float>(size * random.normal());
    std::vector<uint8_t> codes(128);
    float scale = 0;
    const RowPieces pieces{.codes = codes.data(), .scales = &scale};
    pack_fp8(row, pieces);
    unpack_fp8(pieces, packed);
    round_to_e4m3(row, rounded);
    ASSERT_EQ(rounded, packed) << trial;
  }
}

TEST(RoundToE4m3, HasOneScaleHoweverLongTheRow) {
  std::vector<float> row(300, 1);
  row[299] = 448;
  std::vector<float> rounded(300);
  round_to_e4m3(row, rounded);
  EXPECT_EQ(rounded, row);
  row[299] = 448 * 1024;  // 1 is a multiple of 2^-9 · 1024 no more
  round_to_e4m3(row, rounded);
  EXPECT_EQ(rounded[0], 0);
  EXPECT_EQ(rounded[299], row[299]);
  round_to_e4m3(row, row);
  EXPECT_EQ(row, rounded);
}

TEST(RoundToE4m3, KeepsZerosAndWhatIsNoNumber) {
  std::vector<float> row(4, 0.0F);
  round_to_e4m3(row, row);
  EXPECT_EQ(row, std::vector<float>(4, 0.0F));
  row = {1, std::numeric_limits<float>::quiet_NaN(), -2, 0};
  round_to_e4m3(row, row);
  EXPECT_EQ(row[0], 1);
  EXPECT_TRUE(std::isnan(row[1]));
  row = {1, std::numeric_limits<float>::infinity(), -2, 0};
  round_to_e4m3(row, row);
  for (const float value : row) EXPECT_TRUE(std::isnan(value));
}

}  // namespace
}  // namespace mixtral::ops
