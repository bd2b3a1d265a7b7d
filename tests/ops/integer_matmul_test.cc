// Products of weights in blocks of whole numbers, whose kernels multiply codes: beside the scalar
// reference, on every instruction set that this processor has, and in every batch.
#include "cpu/integer_matmul.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <set>
#include <vector>

#include "backends/registry.h"
#include "base/random.h"
#include "cpu/backend.h"
#include "ops/rounding.h"
#include "tests/op_cases.h"

namespace mixtral {
namespace {

using ops::Operands;
using ops::WeightFormat;
using ops::WeightLayout;

/// The formats that have kernels.
std::vector<WeightFormat> formats() {
  std::vector<WeightFormat> all;
  for (const ops::FormatRow& row : ops::kWeightFormats)
    if (cpu::integer_format(WeightFormat(row))) all.emplace_back(row);
  return all;
}

/// Numbers of a row that are packed together.
int64_t unit_of(WeightFormat format) {
  return format.kind() == ops::FormatKind::separate ? format.row().block : format.unit();
}

/// Bytes of a block in which a half stands: scales and minima.
std::vector<int64_t> halves_of(WeightFormat format) {
  const ops::FormatRow& row = format.row();
  if (row.kind == ops::FormatKind::separate) return {};
  std::vector<int64_t> places;
  for (int i = 0; i < row.halves; ++i) places.push_back(row.halves_at + 2 * i);
  return places;
}

class IntegerMatmul : public testing::Test {
 protected:
  IntegerMatmul() {
    if (cpu::integer_kernel_sets().empty()) skip_ = true;
    RecordProperty("seed", std::to_string(test::test_seed()));
  }
  void SetUp() override {
    if (skip_) GTEST_SKIP() << "no kernels for this processor";
  }

  /// A tensor of the arena with these values.
  template <class T>
  Tensor tensor(Shape shape, Dtype dtype, const std::vector<T>& values) {
    const Tensor made = arena_.allocate(shape, dtype);
    CHECK(made.bytes() == static_cast<int64_t>(values.size() * sizeof(T)));
    std::memcpy(made.data(), values.data(), values.size() * sizeof(T));
    return made;
  }
  Tensor normal(Shape shape, double deviation = 1) {
    std::vector<float> values(static_cast<size_t>(shape.numel()));
    for (float& value : values) value = static_cast<float>(deviation * random_.normal());
    return tensor(shape, Dtype::f32, values);
  }
  Tensor room(Shape shape) { return arena_.allocate(shape, Dtype::f32); }

  ops::Weight empty_weight(Shape shape, WeightFormat format) {
    return ops::make_weight(
        shape, format, [&](Shape piece, Dtype dtype) { return arena_.allocate(piece, dtype); });
  }
  /// Any codes, beside scales and minima of a few hundredths of both signs.
  ops::Weight random_weight(Shape shape, WeightFormat format) {
    const ops::Weight weight = empty_weight(shape, format);
    auto* bytes = weight.codes.as<uint8_t>();
    for (int64_t i = 0; i < weight.codes.bytes(); ++i)
      bytes[i] = static_cast<uint8_t>(random_.next() >> 20);
    const auto number = [&] { return static_cast<float>(0.02 * random_.normal()); };
    for (const Tensor& piece : {weight.scales, weight.minima}) {
      if (piece && piece.dtype() == Dtype::f16)
        for (f16& each : piece.span<f16>()) each = f16(number());
      if (piece && piece.dtype() == Dtype::bf16)
        for (bf16& each : piece.span<bf16>()) each = bf16(number());
    }
    if (format.kind() == ops::FormatKind::separate) return weight;
    for (int64_t block = 0; block < weight.codes.bytes(); block += format.row().block_bytes)
      for (const int64_t at : halves_of(format)) {
        const f16 half(number());
        std::memcpy(bytes + block + at, &half, sizeof half);
      }
    return weight;
  }
  ops::Weight interleaved(const ops::Weight& rows) {
    ops::Weight mixed = empty_weight(rows.shape, rows.format);
    mixed.layout = WeightLayout::interleaved8;
    ops::change_layout(rows, mixed);
    return mixed;
  }

  bool skip_ = false;
  RandomStream random_{test::test_seed(), 4711};
  Arena arena_{host_memory()};
  std::unique_ptr<Backend> cpu_ = make_backend("cpu", 2), reference_ = make_backend("ref");
};

TEST_F(IntegerMatmul, EqualsTheReferenceInEveryFormat) {
  struct Case {
    std::vector<int32_t> rows;
    int64_t outputs, units;
    int64_t begin = 0, spare = 0;
    double scale = 1;
    bool accumulate = false;
  };
  const std::vector<Case> cases{
      {.rows = {1}, .outputs = 8, .units = 1},
      {.rows = {1, 0, 0, 1}, .outputs = 40, .units = 3},
      {.rows = {3, 0, 7, 1, 33}, .outputs = 24, .units = 2},
      {.rows = {150}, .outputs = 56, .units = 5},
      {.rows = {5, 2},
       .outputs = 16,
       .units = 2,
       .begin = 3,
       .spare = 2,
       .scale = -0.5,
       .accumulate = true},
  };
  std::set<cpu::IntegerFormat> kernels;
  for (const WeightFormat format : formats()) kernels.insert(*cpu::integer_format(format));
  EXPECT_EQ(kernels.size(), static_cast<size_t>(cpu::kIntegerFormats));
  for (const WeightFormat format : formats()) {
    for (const Case& c : cases) {
      const ArenaScope scope(arena_);
      const int64_t total = std::accumulate(c.rows.begin(), c.rows.end(), int64_t{0});
      const int64_t inputs = c.units * unit_of(format), columns = c.begin + c.outputs + c.spare;
      const auto groups = static_cast<int64_t>(c.rows.size());
      const ops::Weight weight = random_weight({groups, c.outputs, inputs}, format);
      const Tensor y = normal({total, columns}), expected = room({total, columns});
      std::memcpy(expected.data(), y.data(), static_cast<size_t>(y.bytes()));
      ops::GroupedMatmul op{.x = normal({total, inputs}),
                            .weight = interleaved(weight),
                            .offsets = {},
                            .y = y,
                            .y_begin = c.begin,
                            .scale = c.scale,
                            .accumulate = c.accumulate,
                            .operands = Operands::as_weight};
      if (groups > 1) op.offsets = tensor({groups + 1}, Dtype::i32, test::offsets_of(c.rows));
      ASSERT_TRUE(cpu_->computes_directly(op));
      cpu_->run(op);
      op.y = expected;
      reference_->run(op);
      double largest = 0, worst = 0;
      for (int64_t i = 0; i < y.numel(); ++i) {
        const auto want = static_cast<double>(expected.as<float>()[i]);
        largest = std::max(largest, std::abs(want));
        worst = std::max(worst, std::abs(static_cast<double>(y.as<float>()[i]) - want));
      }
      EXPECT_LE(worst, 3e-6 * largest)
          << format.name() << ", " << total << " rows, seed " << test::test_seed();
    }
  }
}

/// The largest codes of either sign beside the largest x: no sum on the way may overflow.
TEST_F(IntegerMatmul, HoldsTheLargestCodes) {
  for (const WeightFormat format : formats()) {
    for (const int byte : {0x00, 0xff, 0x80, 0x7f}) {
      const ArenaScope scope(arena_);
      const int64_t inputs = 2 * unit_of(format);
      const ops::Weight weight = random_weight({1, 8, inputs}, format);
      auto* bytes = weight.codes.as<uint8_t>();
      const auto halves = halves_of(format);
      for (int64_t i = 0; i < weight.codes.bytes(); ++i) {
        const int64_t at = i % std::max(1, format.row().block_bytes);
        const bool half = std::ranges::any_of(halves, [&](int64_t h) { return at / 2 == h / 2; });
        if (!half) bytes[i] = static_cast<uint8_t>(byte);
      }
      for (const float sign : {1.0f, -1.0f}) {
        const Tensor x = tensor({1, inputs}, Dtype::f32,
                                std::vector<float>(static_cast<size_t>(inputs), 3 * sign));
        const Tensor y = room({1, 8}), expected = room({1, 8});
        ops::GroupedMatmul op{.x = x,
                              .weight = interleaved(weight),
                              .offsets = {},
                              .y = y,
                              .operands = Operands::as_weight};
        cpu_->run(op);
        op.y = expected;
        reference_->run(op);
        double terms = 0;  // the size of what is added up
        std::vector<float> row(static_cast<size_t>(inputs));
        for (int64_t o = 0; o < 8; ++o) {
          ops::unpack_row(weight, o, row);
          for (const float w : row) terms = std::max(terms, std::abs(static_cast<double>(w)));
        }
        for (int64_t o = 0; o < 8; ++o)
          EXPECT_NEAR(y.as<float>()[o], expected.as<float>()[o],
                      3e-6 * terms * 3 * static_cast<double>(inputs))
              << format.name() << ", bytes of " << byte << ", x " << 3 * sign;
      }
    }
  }
}

/// Products of one x, whose formats round it in blocks of both sizes; some are dense.
TEST_F(IntegerMatmul, TogetherEqualsOneAfterAnother) {
  const std::vector<std::vector<std::string_view>> lists{
      {"q4_0", "q8_0", "q5_1"},
      {"q4_k", "q6_k"},
      {"q8_0", "q6_k", "q4_0", "q4_k"},
      {"q4_0", ""},
      {"int4_g64_bf16", "int8_g32_f16", "q4_0", "q6_k"}};
  for (const auto& names : lists)
    for (const int64_t rows : {1, 2, 19, 140}) {
      const ArenaScope scope(arena_);
      constexpr int64_t kOutputs = 600, kInputs = 512;
      const Tensor x = normal({rows, kInputs});
      const Shape shape{rows, kOutputs * static_cast<int64_t>(names.size())};
      const Tensor y = normal(shape), expected = normal(shape);
      std::vector<ops::GroupedMatmul> products;
      for (const std::string_view name : names) {
        const auto all = formats();
        const auto found = std::ranges::find(all, name, &WeightFormat::name);
        const Shape weights{1, kOutputs, kInputs};
        products.push_back({.x = x,
                            .weight = found == all.end()
                                          ? ops::Weight(normal(weights))
                                          : interleaved(random_weight(weights, *found)),
                            .offsets = {},
                            .y = y,
                            .y_begin = kOutputs * static_cast<int64_t>(products.size()),
                            .operands = Operands::as_weight});
      }
      cpu_->run_all(products);
      for (ops::GroupedMatmul& product : products) {
        product.y = expected;
        cpu_->run(product);
      }
      EXPECT_EQ(std::memcmp(y.data(), expected.data(), static_cast<size_t>(y.bytes())), 0)
          << names.front() << " and others, " << rows << " rows";
    }
}

TEST_F(IntegerMatmul, GivesTheSameBitsOnEveryInstructionSet) {
  const auto sets = cpu::integer_kernel_sets();
  for (const WeightFormat format : formats()) {
    const ArenaScope scope(arena_);
    const int64_t rows = 37, outputs = 40, units = 3, inputs = units * unit_of(format);
    const ops::Weight weight = interleaved(random_weight({1, outputs, inputs}, format));
    const Tensor x = normal({rows, inputs});
    const bool super = format.row().super_block > 0;
    const bool apart = format.kind() == ops::FormatKind::separate;
    std::vector<std::vector<float>> results;
    std::vector<std::string> names;
    for (const cpu::IntegerKernels* kernels : sets) {
      std::vector<cpu::RoundedBlock> small(static_cast<size_t>(super ? 0 : rows * inputs / 32));
      std::vector<cpu::RoundedSuperBlock> large(static_cast<size_t>(super ? rows * units : 0));
      for (int64_t r = 0; r < rows; ++r) {
        const float* from = x.as<float>() + r * inputs;
        if (super)
          kernels->round_super(from, units, large.data() + r, rows);
        else if (apart && format.row().bits == 4)
          kernels->round_halves(from, inputs / 32, small.data() + r, rows);
        else
          kernels->round(from, inputs / 32, small.data() + r, rows);
      }
      const auto x_of = [&](int64_t r) {
        return super ? static_cast<const void*>(large.data() + r) : small.data() + r;
      };
      for (const int64_t together : {rows, int64_t{1}}) {
        std::vector<float> y(static_cast<size_t>(rows * outputs));
        for (int64_t r = 0; r < rows; r += together)
          kernels->multiply[static_cast<int>(*cpu::integer_format(format))](
              {.weight = weight.codes.as<uint8_t>(),
               .bundles = outputs / 8,
               .bundle_bytes = 8 * format.codes(inputs),
               .blocks = units,
               .scales = apart ? static_cast<const uint8_t*>(weight.scales.data()) : nullptr,
               .minima = apart ? static_cast<const uint8_t*>(weight.minima.data()) : nullptr,
               .scale_bytes = 8 * 2 * format.scales(inputs),
               .group_blocks = apart ? format.row().block / 32 : 1,
               .x = x_of(r),
               .x_rows = rows,
               .rows = together,
               .y = y.data() + r * outputs,
               .y_stride = outputs,
               .scale = 1,
               .accumulate = false});
        results.push_back(y);
        names.push_back(std::string(kernels->name) +
                        ", rows together: " + std::to_string(together));
      }
    }
    for (size_t i = 1; i < results.size(); ++i)
      EXPECT_EQ(results[i], results[0]) << format.name() << ": " << names[i] << " and " << names[0];
  }
}

TEST_F(IntegerMatmul, RoundsXAsTheReferenceDoes) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<std::vector<float>> rows;
  for (const float size : {1.0f, 1e-30f, 1e-38f, 1e30f, 3e38f}) {
    rows.emplace_back();
    for (int i = 0; i < 256; ++i)
      rows.back().push_back(size * static_cast<float>(std::clamp(random_.normal() / 4, -1.0, 1.0)));
  }
  rows.emplace_back(256, 0.0f);
  rows.emplace_back(256, -5.0f);
  rows.emplace_back();  // 127 and halves: ties
  for (int i = 0; i < 256; ++i) rows.back().push_back(static_cast<float>(i % 128) - 0.5f);
  rows.back()[0] = rows.back()[32] = 127;
  rows.push_back(rows[0]);
  rows.back()[40] = kInfinity;
  rows.push_back(rows[0]);
  rows.back()[3] = -std::numeric_limits<float>::quiet_NaN();
  const auto same = [](float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); };
  for (const cpu::IntegerKernels* kernels : cpu::integer_kernel_sets()) {
    for (size_t r = 0; r < rows.size(); ++r) {
      std::vector<float> expected(256);
      cpu::RoundedSuperBlock large;
      ops::round_to_integers(rows[r], 256, expected);
      kernels->round_super(rows[r].data(), 1, &large, 1);
      for (size_t i = 0; i < 256; ++i)
        ASSERT_TRUE(same(static_cast<float>(large.codes[i]) * large.scale, expected[i]))
            << kernels->name << ", row " << r << ", element " << i;
      for (size_t part = 0; part < 16; ++part)
        EXPECT_EQ(large.sums[part],
                  std::accumulate(large.codes + 16 * part, large.codes + 16 * part + 16, 0));
      cpu::RoundedBlock small[8];
      ops::round_to_integers(rows[r], 32, expected);
      kernels->round(rows[r].data(), 8, small, 1);
      for (size_t i = 0; i < 256; ++i) {
        const cpu::RoundedBlock& block = small[i / 32];
        ASSERT_TRUE(same(static_cast<float>(block.codes[i % 32]) * block.scale, expected[i]))
            << kernels->name << ", row " << r << ", element " << i;
      }
      for (const cpu::RoundedBlock& block : small)
        EXPECT_EQ(block.sum, std::accumulate(block.codes, block.codes + 32, 0));
    }
  }
}

TEST_F(IntegerMatmul, GivesARowTheSameBitsInEveryBatchAndWithAnyThreads) {
  for (const WeightFormat format : formats()) {
    const ArenaScope scope(arena_);
    const int64_t rows = 140, outputs = 88, inputs = 2 * unit_of(format);
    const ops::Weight weight = interleaved(random_weight({1, outputs, inputs}, format));
    const Tensor x = normal({rows, inputs}), whole = room({rows, outputs});
    const auto multiply = [&](Backend& backend, const Tensor& some, const Tensor& y) {
      backend.run(ops::GroupedMatmul{
          .x = some, .weight = weight, .offsets = {}, .y = y, .operands = Operands::as_weight});
    };
    multiply(*cpu_, x, whole);
    const auto one_thread = make_backend("cpu", 1);
    for (const int64_t size : {1, 2, 5, 16, 31, 64, 129}) {
      for (int64_t begin = 0; begin + size <= rows; begin += size) {
        const Tensor part = room({size, outputs});
        multiply(begin % 2 == 0 ? *cpu_ : *one_thread, x.slice(begin, begin + size), part);
        ASSERT_EQ(std::memcmp(part.data(), whole.slice(begin, begin + size).data(),
                              static_cast<size_t>(part.bytes())),
                  0)
            << format.name() << ", rows " << begin << " to " << begin + size;
      }
    }
  }
}

TEST_F(IntegerMatmul, MakesWhatIsNotFiniteNotANumberOnItsRowAlone) {
  for (const WeightFormat format : formats()) {
    const ArenaScope scope(arena_);
    const int64_t inputs = 2 * unit_of(format);
    const Tensor x = normal({3, inputs}), y = room({3, 8});
    x.as<float>()[inputs + 7] = std::numeric_limits<float>::infinity();
    cpu_->run(ops::GroupedMatmul{.x = x,
                                 .weight = interleaved(random_weight({1, 8, inputs}, format)),
                                 .offsets = {},
                                 .y = y,
                                 .operands = Operands::as_weight});
    for (int64_t i = 0; i < 24; ++i)
      EXPECT_EQ(std::isnan(y.as<float>()[i]), i / 8 == 1) << format.name() << " " << i;
  }
}

}  // namespace
}  // namespace mixtral
