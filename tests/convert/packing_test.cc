// The searches for scales: what they write can be read, and costs less than rounding to the
// nearest.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "convert/group_pack.h"
#include "ops/block_rounder.h"
#include "ops/weight_format.h"

namespace mixtral {
namespace {

struct KType {
  const char* name;
  void (*pack)(std::span<const float>, const ops::RowPieces&);
  double most_error;  // root mean square, as a share of the numbers' deviation

  ops::WeightFormat format() const { return *ops::find_weight_format(name); }
};
constexpr KType kTypes[] = {{"q4_k", ops::pack_q4_k, 0.085},
                            {"q5_k", ops::pack_q5_k, 0.042},
                            {"q6_k", ops::pack_q6_k, 0.02}};

std::vector<float> normal_numbers(size_t count, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0, 0.05f);
  std::vector<float> values(count);
  for (float& value : values) value = normal(engine);
  return values;
}

/// The numbers that are read of bytes that `pack` has written.
template <class Pack>
std::vector<float> read_back(const KType& type, size_t count, const Pack& pack) {
  const ops::WeightFormat format = type.format();
  std::vector<uint8_t> bytes(static_cast<size_t>(format.row_bytes(static_cast<int64_t>(count))));
  pack(bytes.data());
  std::vector<float> again(count);
  format.row().unpack({.codes = bytes.data()}, again);
  return again;
}

std::vector<float> through(const KType& type, std::span<const float> values) {
  return read_back(type, values.size(), [&](uint8_t* to) { type.pack(values, {.codes = to}); });
}

/// Rounds number by number, the last block first. `kept` gets what the rounder says it keeps.
void round_all(ops::BlockRounder& rounder, std::span<const float> values,
               std::span<const float> weights, std::vector<float>& kept) {
  kept.resize(values.size());
  const size_t unit = rounder.unit(), block = rounder.block();
  for (size_t first = 0; first < values.size(); first += unit) {
    rounder.open(&values[first], &weights[first]);
    for (size_t b = unit / block; b-- > 0;) {
      const size_t at = first + b * block;
      rounder.open_block(b, &values[at], &weights[at]);
      for (size_t i = at; i < at + block; ++i) kept[i] = rounder.round(i - first, values[i]);
    }
    rounder.close(first / unit);
  }
}

double error(std::span<const float> a, std::span<const float> b, std::span<const float> weights) {
  double sum = 0, all = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double w = weights.empty() ? 1 : static_cast<double>(weights[i]);
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    sum += w * d * d;
    all += w;
  }
  return std::sqrt(sum / all);
}

TEST(KTypes, KeepNormalNumbersToAFewPercentOfTheirDeviation) {
  const std::vector<float> values = normal_numbers(4096, 3);
  for (const KType& type : kTypes)
    EXPECT_LT(error(values, through(type, values), {}), 0.05 * type.most_error) << type.name;
}

TEST(Rounders, MoveTheErrorToColumnsThatMatterLess) {
  const std::vector<float> values = normal_numbers(4096, 4);
  std::vector<float> weights(values.size()), kept;
  for (size_t i = 0; i < weights.size(); ++i) weights[i] = i % 3 == 0 ? 100.f : 1.f;
  std::vector<KType> types(std::begin(kTypes), std::end(kTypes));
  types.push_back({"q4_0", ops::pack_q4_0, {}});
  types.push_back({"q5_0", ops::pack_q5_0, {}});
  types.push_back({"q8_0", ops::pack_q8_0, {}});
  for (const KType& type : types) {
    const std::vector<float> weighted = read_back(type, values.size(), [&](uint8_t* to) {
      round_all(*ops::make_rounder(type.name, to), values, weights, kept);
    });
    EXPECT_EQ(weighted, kept) << type.name;
    EXPECT_LT(error(values, weighted, weights), error(values, through(type, values), weights))
        << type.name;
  }
}

// Scales are f16, so that the smallest numbers become 0.
TEST(KTypes, SurviveNumbersOfEverySize) {
  for (const float size : {0.f, 1e-30f, 1e-6f, 1e4f}) {
    std::vector<float> values = normal_numbers(512, 5);
    for (float& value : values) value *= size;
    values[17] = size;  // and a block of one sign beside zeros
    std::fill(values.begin() + 256, values.begin() + 288, size);
    for (const KType& type : kTypes) {
      const std::vector<float> again = through(type, values);
      for (size_t i = 0; i < values.size(); ++i) {
        ASSERT_TRUE(std::isfinite(again[i])) << type.name << " " << size;
        ASSERT_NEAR(again[i], values[i], (size < 1e-3f ? 1.01f : 0.2f) * size)
            << type.name << " " << i;
      }
    }
  }
}

TEST(Groups, AreReadAsTheyWerePackedAndNoWorseThanTheNearest) {
  const std::vector<float> values = normal_numbers(1024, 6);
  for (const int bits : {4, 8}) {
    std::vector<int32_t> codes(1024 * static_cast<size_t>(bits) / 32);
    std::vector<float> scales(16), biases(16), packed(1024);
    pack_group_row(values,
                   {.bits = bits,
                    .group = 64,
                    .dtype = Dtype::f32,
                    .codes = codes.data(),
                    .scales = reinterpret_cast<std::byte*>(scales.data()),
                    .biases = reinterpret_cast<std::byte*>(biases.data())},
                   packed);
    double nearest = 0;
    for (size_t g = 0; g < 16; ++g) {
      const auto group = std::span(values).subspan(g * 64, 64);
      const auto [low, high] = std::ranges::minmax(group);
      const float step = (high - low) / static_cast<float>((1 << bits) - 1);
      for (const float value : group) {
        const double off =
            static_cast<double>(low + step * std::round((value - low) / step) - value);
        nearest += off * off;
      }
    }
    EXPECT_LE(error(values, packed, {}), std::sqrt(nearest / 1024) * (1 + 1e-6)) << bits;
    for (size_t i = 0; i < values.size(); ++i) {
      const auto in_word = 32 / static_cast<size_t>(bits);
      const uint32_t word = static_cast<uint32_t>(codes[i / in_word]);
      const uint32_t code = word >> static_cast<size_t>(bits) * (i % in_word) & ((1u << bits) - 1);
      ASSERT_FLOAT_EQ(scales[i / 64] * static_cast<float>(code) + biases[i / 64], packed[i]);
    }
  }
}

}  // namespace
}  // namespace mixtral
