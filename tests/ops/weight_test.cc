// Weights in every format of the table, and in two that only tests have.
#include "ops/weight.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <set>
#include <vector>

#include "base/random.h"
#include "tensor/buffer.h"
#include "tests/support/toy_formats.h"

namespace mixtral::ops {
namespace {

/// A weight in memory of its own.
struct Owned {
  std::deque<Buffer> buffers;
  Weight weight;

  Owned(Shape shape, WeightFormat format) {
    weight = make_weight(shape, format, [&](Shape piece, Dtype dtype) {
      buffers.emplace_back(host_memory(), piece.numel() * size_of(dtype));
      return buffers.back().tensor(piece, dtype);
    });
  }
  std::vector<std::vector<uint8_t>> bytes() const {
    std::vector<std::vector<uint8_t>> all;
    for (const auto piece : kWeightPieces) {
      const auto* data = static_cast<const uint8_t*>((weight.*piece).data());
      all.emplace_back(data, data + (weight.*piece).bytes());
    }
    return all;
  }
  std::vector<float> row(int64_t index) const {
    std::vector<float> values(static_cast<size_t>(weight.inputs()));
    unpack_row(weight, index, values);
    return values;
  }
};

std::vector<float> normal(int64_t count, double deviation, uint64_t seed) {
  RandomStream random(seed, 0);
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i)
    values.push_back(static_cast<float>(deviation * random.normal()));
  return values;
}

/// A row of a few blocks; the last one is not whole where the format allows it.
int64_t columns_of(WeightFormat format) {
  const int64_t block = std::max<int64_t>(format.unit(), format.row().block);
  return format.unit() > 1 ? 3 * block : 3 * block + 5;
}

TEST(WeightFormats, AreFoundByTheirNamesWhichAreDifferent) {
  std::set<std::string_view> names;
  for (const FormatRow& row : kWeightFormats) {
    EXPECT_TRUE(names.insert(row.name).second) << row.name;
    EXPECT_EQ(find_weight_format(row.name), WeightFormat(row));
  }
  EXPECT_EQ(find_weight_format("off"), std::nullopt);
  EXPECT_EQ(dense_format(Dtype::bf16), WeightFormat::bf16);
}

TEST(WeightFormats, TakeTheBytesThatTheirTableSays) {
  EXPECT_EQ(WeightFormat::bf16.row_bytes(100), 200);
  EXPECT_EQ(WeightFormat::fp8.row_bytes(300), 300 + 3 * 4);
  EXPECT_EQ(WeightFormat::nf4.row_bytes(77), 39 + 2 * 4);
  EXPECT_EQ(WeightFormat(testing::kToy6).row_bytes(96), 3 * 26);
  EXPECT_EQ(WeightFormat(testing::kToy6Pieces).row_bytes(100), 75 + 7 + 7 * 4 + 2 * 4);
}

TEST(WeightFormats, RoundWithinTheErrorOfTheirTableAndComeNearIt) {
  for (const WeightFormat format : testing::packed_formats()) {
    const FormatRow& row = format.row();
    const int64_t columns = columns_of(format), span = std::max(row.block, row.super_block);
    double worst = 0;
    for (uint64_t seed = 1; seed <= 200; ++seed) {
      const Owned packed({1, 1, columns}, format);
      const auto x = normal(columns, seed % 2 == 0 ? 0.02 : 30, seed);
      pack_row(packed.weight, 0, x);
      const auto y = packed.row(0);
      for (int64_t first = 0; first < columns; first += span) {
        const auto end = static_cast<size_t>(std::min<int64_t>(first + span, columns));
        double largest = 0, error = 0;
        for (auto i = static_cast<size_t>(first); i < end; ++i) {
          largest = std::max(largest, std::abs(static_cast<double>(x[i])));
          error = std::max(error, std::abs(static_cast<double>(y[i]) - static_cast<double>(x[i])));
        }
        worst = std::max(worst, error / largest);
      }
    }
    EXPECT_LE(worst, row.error) << format.name();
    EXPECT_GE(worst, row.error / 2) << format.name();
  }
}

TEST(WeightFormats, PackWhatTheyUnpackedToTheSameBytes) {
  for (const WeightFormat format : testing::packed_formats()) {
    if (!format.row().repacks) continue;
    const int64_t columns = columns_of(format);
    for (uint64_t seed = 1; seed <= 50; ++seed) {
      const Owned once({1, 1, columns}, format), twice({1, 1, columns}, format);
      pack_row(once.weight, 0, normal(columns, 0.3, seed));
      pack_row(twice.weight, 0, once.row(0));
      EXPECT_EQ(once.bytes(), twice.bytes()) << format.name() << ", seed " << seed;
    }
  }
}

TEST(WeightFormats, KeepZerosAndWriteEveryByte) {
  for (const WeightFormat format : testing::packed_formats()) {
    const int64_t columns = columns_of(format);
    const Owned a({1, 1, columns}, format), b({1, 1, columns}, format);
    for (const auto piece : kWeightPieces) {
      const auto fill = [&](const Tensor& t, int byte) {
        if (t) std::memset(t.data(), byte, static_cast<size_t>(t.bytes()));
      };
      fill(a.weight.*piece, 0xff);
      fill(b.weight.*piece, 0);
    }
    const std::vector<float> zeros(static_cast<size_t>(columns), 0.0f);
    pack_row(a.weight, 0, zeros);
    pack_row(b.weight, 0, zeros);
    EXPECT_EQ(a.bytes(), b.bytes()) << format.name();
    EXPECT_EQ(a.row(0), zeros) << format.name();
  }
}

TEST(WeightFormats, ShowByTheirScalesWhetherTheirNumbersAreFinite) {
  int shown = 0;
  for (const FormatRow& row : kWeightFormats) {
    const WeightFormat format(row);
    std::vector<uint8_t> codes(static_cast<size_t>(std::max(row.block_bytes, 1)));
    if (row.halves == 0) {
      EXPECT_FALSE(has_finite_scales(format, std::as_bytes(std::span(codes)))) << row.name;
      continue;
    }
    ++shown;
    RandomStream random(5, 0);
    int finite = 0;
    for (int i = 0; i < 2000; ++i) {
      for (uint8_t& byte : codes) byte = static_cast<uint8_t>(random.uniform() * 256);
      std::vector<float> values(static_cast<size_t>(format.unit()));
      row.unpack({.codes = codes.data()}, values);
      const bool all =
          std::ranges::all_of(values, [](float value) { return std::isfinite(value); });
      EXPECT_EQ(has_finite_scales(format, std::as_bytes(std::span(codes))), all)
          << row.name << ", block " << i;
      finite += all;
    }
    EXPECT_GT(finite, 1000) << row.name;
    EXPECT_LT(finite, 2000) << row.name;
  }
  EXPECT_GE(shown, 12);
}

TEST(WeightFormats, OfGroupsShowItByScalesAndMinima) {
  for (const char* name : {"int4_g64_bf16", "int8_g32_f16"}) {
    const WeightFormat format = *find_weight_format(name);
    for (const auto piece : {&Weight::scales, &Weight::minima}) {
      const Owned packed({1, 2, 128}, format);
      for (int64_t row = 0; row < 2; ++row) pack_row(packed.weight, row, normal(128, 1, 3));
      EXPECT_TRUE(has_finite_scales(packed.weight)) << name;
      const Tensor& numbers = packed.weight.*piece;
      static_cast<uint16_t*>(numbers.data())[numbers.numel() - 1] = 0xff80;  // not finite in both
      EXPECT_FALSE(has_finite_scales(packed.weight)) << name;
    }
  }
  const Owned codes({1, 1, 128}, WeightFormat::fp8);
  pack_row(codes.weight, 0, normal(128, 1, 3));
  EXPECT_FALSE(has_finite_scales(codes.weight));  // a code may be NaN, too
}

TEST(WeightLayouts, KeepEveryNumberAndComeBackByteForByte) {
  int changed = 0;
  for (const WeightFormat format : testing::packed_formats()) {
    const Shape shape{3, 16, format.unit() > 1 ? 2 * format.unit() : 144};
    if (!has_layout(format, shape, WeightLayout::interleaved8)) continue;
    const Owned rows(shape, format), back(shape, format);
    Owned mixed(shape, format);
    mixed.weight.layout = WeightLayout::interleaved8;
    for (int64_t row = 0; row < rows.weight.rows(); ++row)
      pack_row(rows.weight, row, normal(shape[2], 0.1, static_cast<uint64_t>(row)));
    change_layout(rows.weight, mixed.weight);
    EXPECT_NE(mixed.bytes(), rows.bytes()) << format.name();
    for (int64_t row = 0; row < rows.weight.rows(); ++row)
      EXPECT_EQ(mixed.row(row), rows.row(row)) << format.name() << " row " << row;
    // Bytes 4 to 7 of row 9's codes: the second bundle of eight rows, its second row. In a format
    // of blocks with a scale before the codes, it is those behind the scale.
    const FormatRow& row = format.row();
    const int64_t scale = format.unit() > 1 ? row.block_bytes % 4 : 0;
    const int64_t behind = row.super_block == 0 ? scale : 0;
    const auto* in_mixed = static_cast<const uint8_t*>(mixed.weight.codes.data());
    const auto* in_rows = static_cast<const uint8_t*>(rows.weight.codes.data());
    const int64_t width = rows.weight.codes.dim(1);
    EXPECT_EQ(
        std::memcmp(in_mixed + 8 * width + 8 * scale + 32 + 4, in_rows + 9 * width + behind + 4, 4),
        0)
        << format.name();
    change_layout(mixed.weight, back.weight);
    EXPECT_EQ(back.bytes(), rows.bytes()) << format.name();
    ++changed;
  }
  EXPECT_GE(changed, 4);
}

TEST(WeightLayouts, OfDenseFormatsPutSixteenRowsSideBySide) {
  for (const WeightFormat format : {WeightFormat::f32, WeightFormat::bf16, WeightFormat::f16}) {
    const Shape shape{2, 32, 38};
    const Owned rows(shape, format), back(shape, format);
    Owned mixed(shape, format);
    mixed.weight.layout = WeightLayout::interleaved16;
    auto* const plain = static_cast<uint8_t*>(rows.weight.codes.data());
    for (int64_t i = 0; i < rows.weight.bytes(); ++i)
      plain[i] = static_cast<uint8_t>(i * 7 + i / 97);
    change_layout(rows.weight, mixed.weight);
    const auto* const words = static_cast<const uint8_t*>(mixed.weight.codes.data());
    const int64_t width = rows.weight.codes.bytes() / rows.weight.rows();
    // Word 5 of row 37: the third bundle, its sixth row.
    EXPECT_EQ(std::memcmp(words + 32 * width + (5 * 16 + 5) * 4, plain + 37 * width + 5 * 4, 4), 0);
    change_layout(mixed.weight, back.weight);
    EXPECT_EQ(back.bytes(), rows.bytes()) << format.name();
  }
}

TEST(WeightLayouts, OfBlocksDivideARowIntoCodesAndHeaders) {
  for (const WeightFormat format : {WeightFormat::q8_0, WeightFormat::q4_0, WeightFormat::q4_k}) {
    const Shape shape{2, 3, 512};
    ASSERT_TRUE(has_layout(format, shape, WeightLayout::planes)) << format.name();
    const Owned rows(shape, format), back(shape, format);
    Owned planes(shape, format);
    planes.weight.layout = WeightLayout::planes;
    auto* const plain = static_cast<uint8_t*>(rows.weight.codes.data());
    for (int64_t i = 0; i < rows.weight.bytes(); ++i)
      plain[i] = static_cast<uint8_t>((i * 2654435761 >> 8) % 120);  // halves below 2
    change_layout(rows.weight, planes.weight);
    EXPECT_NE(planes.bytes(), rows.bytes()) << format.name();
    for (int64_t row = 0; row < rows.weight.rows(); ++row)
      EXPECT_EQ(planes.row(row), rows.row(row)) << format.name() << " row " << row;
    change_layout(planes.weight, back.weight);
    EXPECT_EQ(back.bytes(), rows.bytes()) << format.name();
  }
  // The unit of columns 40 to 47 stands behind that of columns 8 to 15.
  const Shape shape{1, 1, 64};
  const Owned rows(shape, WeightFormat::q8_0);
  Owned planes(shape, WeightFormat::q8_0);
  planes.weight.layout = WeightLayout::planes;
  auto* const plain = static_cast<uint8_t*>(rows.weight.codes.data());
  for (int i = 0; i < 68; ++i) plain[i] = static_cast<uint8_t>(i);
  change_layout(rows.weight, planes.weight);
  const auto* const at = static_cast<const uint8_t*>(planes.weight.codes.data());
  EXPECT_EQ(at[16], 2 + 8);
  EXPECT_EQ(at[24], 34 + 2 + 8);
  EXPECT_EQ(at[64], 0);
  EXPECT_EQ(at[66], 34);
  EXPECT_FALSE(has_layout(WeightFormat::q8_0, {1, 1, 96}, WeightLayout::planes));
  EXPECT_FALSE(has_layout(WeightFormat::q6_k, {1, 1, 512}, WeightLayout::planes));
  EXPECT_FALSE(has_layout(WeightFormat::bf16, {1, 1, 512}, WeightLayout::planes));
}

TEST(WeightLayouts, AreOfWholeBundlesOnly) {
  const auto has = [](WeightFormat format, Shape shape,
                      WeightLayout layout = WeightLayout::interleaved8) {
    return has_layout(format, shape, layout);
  };
  EXPECT_TRUE(has(WeightFormat::fp8, {1, 8, 12}));
  EXPECT_FALSE(has(WeightFormat::fp8, {1, 9, 12}));
  EXPECT_FALSE(has(WeightFormat::fp8, {1, 8, 10}));
  EXPECT_FALSE(has(WeightFormat::bf16, {1, 8, 12}));
  constexpr auto kDense = WeightLayout::interleaved16;
  EXPECT_TRUE(has(WeightFormat::bf16, {1, 16, 12}, kDense));
  EXPECT_TRUE(has(WeightFormat::f32, {1, 16, 11}, kDense));
  EXPECT_FALSE(has(WeightFormat::bf16, {1, 16, 11}, kDense));
  EXPECT_FALSE(has(WeightFormat::bf16, {1, 8, 12}, kDense));
  EXPECT_FALSE(has(WeightFormat::fp8, {1, 16, 12}, kDense));
  EXPECT_TRUE(has(WeightFormat(testing::kToy6), {1, 8, 32}));
  EXPECT_FALSE(has(WeightFormat(testing::kToy6), {1, 12, 32}));
}

TEST(Weights, OfADenseTensorAreItsMatrices) {
  std::vector<float> values(24);
  const Tensor tensor(values.data(), {2, 3, 4}, Dtype::f32);
  const Weight weight = tensor;
  EXPECT_EQ(weight.shape, (Shape{2, 3, 4}));
  EXPECT_EQ(weight.format, WeightFormat::f32);
  EXPECT_EQ(weight.bytes(), tensor.bytes());
  EXPECT_EQ(weight.tensor().data(), tensor.data());
  EXPECT_EQ(weight.slice(1, 2).tensor().data(), values.data() + 12);
  EXPECT_EQ(weight.slice_rows(2, 5).shape, (Shape{1, 3, 4}));
  EXPECT_EQ(weight.slice_rows(2, 5).tensor().data(), values.data() + 8);
  const Weight one = tensor.reshape({6, 4});
  EXPECT_EQ(one.shape, (Shape{1, 6, 4}));
  EXPECT_TRUE(Weight(Tensor()).empty());
  EXPECT_NO_THROW(expect_weight("w", weight));
}

TEST(Weights, InOtherFormatsHaveSlicesOfEveryPieceAndNoPlainValues) {
  const Owned owned({3, 2, 100}, WeightFormat(testing::kToy6Pieces));
  for (int64_t row = 0; row < 6; ++row)
    pack_row(owned.weight, row, normal(100, 0.1, static_cast<uint64_t>(row)));
  const Weight part = owned.weight.slice(1, 3);
  EXPECT_EQ(part.shape, (Shape{2, 2, 100}));
  std::vector<float> values(100);
  unpack_row(part, 3, values);
  EXPECT_EQ(values, owned.row(5));
  unpack_row(owned.weight.slice_rows(3, 4), 0, values);
  EXPECT_EQ(values, owned.row(3));
  EXPECT_NO_THROW(expect_weight("w", part));
  EXPECT_THROW(part.tensor(), InternalError);
  Weight wrong = part;
  wrong.minima = {};
  EXPECT_THROW(expect_weight("w", wrong), InternalError);
}

}  // namespace
}  // namespace mixtral::ops
