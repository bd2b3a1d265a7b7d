#include "ops/matmul.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "base/random.h"
#include "cpu/backend.h"

// The cpu backend's products against plain loops. Products of floats are chains of fused
// multiply-adds in order of the inner index, so they must equal std::fma's bit for bit: with any
// number of rows, threads, groups and on every instruction set.
namespace mixtral {
namespace {

constexpr uint64_t kSeed = 20240229;

struct Case {
  int64_t outputs, inputs;
  std::vector<int32_t> rows;      // per group
  int64_t before = 0, after = 0;  // columns of y around those of the product
  bool offsets = true;            // false: one group without offsets
};

std::string to_string(const Case& c) {
  return fmt::format("O {} I {} rows {} seed {}", c.outputs, c.inputs, fmt::join(c.rows, " "),
                     kSeed);
}

const std::vector<Case>& cases() {
  static const std::vector<Case> kCases = {
      {1, 1, {1}, 0, 0, false},
      {3, 5, {2}, 1, 2, false},
      {16, 16, {16}, 0, 0, false},
      {33, 7, {3, 0, 1, 15}},
      {31, 40, {9}, 0, 0, false},
      {64, 256, {14, 28}},
      {65, 257, {29}, 3, 0, false},
      {40, 515, {1, 8, 9, 0, 30}, 5, 7},
      {100, 96, {0, 0, 77, 3}},
      {257, 130, {70}, 0, 40, false},
      {8, 600, {300}, 0, 0, false},
      {300, 20, {0, 520}},
      {70, 1030, {5, 6, 7, 2}, 0, 0},
      {306, 16, {515}},
      {20, 310, {515}},
      {8, 1030, {1}, 0, 0, false},
      {12, 70, {2, 0, 3}, 1, 0},
      {4, 64, {7}, 0, 0, false},
  };
  return kCases;
}

/// A product's tensors, with random contents.
struct Problem {
  explicit Problem(const Case& of, Dtype weight_dtype = Dtype::f32) : c(of) {
    RandomStream random(kSeed, static_cast<uint64_t>(c.outputs * 1000 + c.inputs));
    starts.push_back(0);
    for (int32_t r : c.rows) starts.push_back(starts.back() + r);
    groups = static_cast<int64_t>(c.rows.size());
    rows = starts.back();
    width = c.before + c.outputs + c.after;
    const auto fill = [&](std::vector<float>& v, int64_t count) {
      v.resize(static_cast<size_t>(count));
      for (float& value : v) value = static_cast<float>(random.uniform() * 2 - 1);
    };
    fill(x, rows * c.inputs);
    fill(y, rows * width);
    fill(weight, groups * c.outputs * c.inputs);
    fill(dx, rows * c.inputs);
    dtype = weight_dtype;
    for (float& value : weight) {
      if (dtype == Dtype::bf16) {
        value = static_cast<float>(bf16(value));
        narrow.push_back(bf16(value).bits);
      } else if (dtype == Dtype::f16) {
        value = static_cast<float>(f16(narrow.size() % 7 == 3 ? value * 1e-6f : value));
        narrow.push_back(f16(value).bits);
      }
    }
  }

  Tensor x_tensor() { return {x.data(), {rows, c.inputs}, Dtype::f32}; }
  Tensor dx_tensor() { return {dx.data(), {rows, c.inputs}, Dtype::f32}; }
  Tensor y_tensor() { return {y.data(), {rows, width}, Dtype::f32}; }
  Tensor weight_tensor() {
    void* data = dtype == Dtype::f32 ? static_cast<void*>(weight.data()) : narrow.data();
    return {data, {groups, c.outputs, c.inputs}, dtype};
  }
  Tensor offsets_tensor() {
    return c.offsets ? Tensor(starts.data(), {groups + 1}, Dtype::i32) : Tensor();
  }
  ops::GroupedMatmul forward() {
    return {.x = x_tensor(),
            .weight = weight_tensor(),
            .offsets = offsets_tensor(),
            .y = y_tensor(),
            .y_begin = c.before};
  }
  ops::GroupedMatmulInput input() {
    return {.dy = y_tensor(),
            .weight = weight_tensor(),
            .offsets = offsets_tensor(),
            .dx = dx_tensor(),
            .dy_begin = c.before};
  }
  ops::GroupedMatmulWeight weight_gradient() {
    return {.dy = y_tensor(),
            .x = x_tensor(),
            .offsets = offsets_tensor(),
            .dweight = {weight.data(), {groups, c.outputs, c.inputs}, Dtype::f32},
            .dy_begin = c.before};
  }
  int64_t group_of(int64_t row) const {
    int64_t g = 0;
    while (row >= starts[static_cast<size_t>(g + 1)]) ++g;
    return g;
  }
  float& at(std::vector<float>& v, int64_t i) const { return v[static_cast<size_t>(i)]; }

  const Case& c;
  std::vector<int32_t> starts;
  std::vector<float> x, y, weight, dx;
  std::vector<uint16_t> narrow;
  Dtype dtype = Dtype::f32;
  int64_t groups = 0, rows = 0, width = 0;
};

float finish(float sum, float scale, bool accumulate, float old) {
  return accumulate ? std::fma(sum, scale, old) : sum * scale;
}

/// The same three products in plain loops, on the problem's own arrays.
void plain_forward(Problem& p, float scale, bool accumulate) {
  for (int64_t r = 0; r < p.rows; ++r)
    for (int64_t o = 0; o < p.c.outputs; ++o) {
      float sum = 0;
      for (int64_t i = 0; i < p.c.inputs; ++i)
        sum = std::fma(p.at(p.x, r * p.c.inputs + i),
                       p.at(p.weight, (p.group_of(r) * p.c.outputs + o) * p.c.inputs + i), sum);
      float& y = p.at(p.y, r * p.width + p.c.before + o);
      y = finish(sum, scale, accumulate, y);
    }
}

void plain_input(Problem& p, float scale, bool accumulate) {
  for (int64_t r = 0; r < p.rows; ++r)
    for (int64_t i = 0; i < p.c.inputs; ++i) {
      float sum = 0;
      for (int64_t o = 0; o < p.c.outputs; ++o)
        sum = std::fma(p.at(p.y, r * p.width + p.c.before + o),
                       p.at(p.weight, (p.group_of(r) * p.c.outputs + o) * p.c.inputs + i), sum);
      float& dx = p.at(p.dx, r * p.c.inputs + i);
      dx = finish(sum, scale, accumulate, dx);
    }
}

void plain_weight(Problem& p, float scale, bool accumulate) {
  for (int64_t g = 0; g < p.groups; ++g)
    for (int64_t o = 0; o < p.c.outputs; ++o)
      for (int64_t i = 0; i < p.c.inputs; ++i) {
        float sum = 0;
        for (int64_t r = p.starts[static_cast<size_t>(g)]; r < p.starts[static_cast<size_t>(g + 1)];
             ++r)
          sum =
              std::fma(p.at(p.y, r * p.width + p.c.before + o), p.at(p.x, r * p.c.inputs + i), sum);
        float& dweight = p.at(p.weight, (g * p.c.outputs + o) * p.c.inputs + i);
        dweight = finish(sum, scale, accumulate, dweight);
      }
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// Each instruction set that both this build and this machine have.
std::vector<int64_t> instruction_sets() {
  std::vector<int64_t> sets;
  for (const int64_t target : {HWY_AVX3, HWY_AVX2, HWY_NEON})
    if (hwy::SupportedTargets() & HWY_TARGETS & target) sets.push_back(target);
  return sets;
}

/// Restricts the kernels to one instruction set for the scope.
class InstructionSet {
 public:
  explicit InstructionSet(int64_t target) { set(target); }
  ~InstructionSet() { set(0); }

 private:
  static void set(int64_t target) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().DeInit();
  }
};

TEST(Matmul, FloatProductsAreChainsOfMultiplyAddsOnEveryInstructionSet) {
  const std::vector<int64_t> sets = instruction_sets();
  if (sets.empty()) GTEST_SKIP() << "this processor has none of AVX2, AVX-512 and NEON";
  for (const int64_t set : sets) {
    const InstructionSet scope(set);
    for (const int threads : {1, 2, 3}) {
      cpu::CpuBackend backend(threads);
      for (const Case& c : cases()) {
        SCOPED_TRACE(std::string(hwy::TargetName(set)) + " " + to_string(c));
        for (const bool accumulate : {false, true}) {
          const float scale = accumulate ? 0.75f : 1.0f;
          Problem got(c), want(c);
          ops::GroupedMatmul forward = got.forward();
          forward.scale = scale;
          forward.accumulate = accumulate;
          check(forward);
          backend.run(forward);
          plain_forward(want, scale, accumulate);
          ASSERT_TRUE(same_bits(got.y, want.y)) << "forward";

          ops::GroupedMatmulInput input = got.input();
          input.scale = scale;
          input.accumulate = accumulate;
          check(input);
          backend.run(input);
          plain_input(want, scale, accumulate);
          ASSERT_TRUE(same_bits(got.dx, want.dx)) << "input gradient";

          ops::GroupedMatmulWeight weight = got.weight_gradient();
          weight.scale = scale;
          weight.accumulate = accumulate;
          check(weight);
          backend.run(weight);
          plain_weight(want, scale, accumulate);
          ASSERT_TRUE(same_bits(got.weight, want.weight)) << "weight gradient";
        }
      }
    }
  }
}

TEST(Matmul, NarrowWeightsEqualTheirFloatsBitForBit) {
  for (const int64_t set : instruction_sets()) {
    const InstructionSet scope(set);
    cpu::CpuBackend backend(2);
    for (const Dtype dtype : {Dtype::bf16, Dtype::f16}) {
      for (const Case& c : cases()) {
        SCOPED_TRACE(std::string(hwy::TargetName(set)) + " " + to_string(c));
        Problem got(c, dtype), want(c, dtype);
        backend.run(got.forward());
        plain_forward(want, 1, false);
        ASSERT_TRUE(same_bits(got.y, want.y)) << "forward";
        backend.run(got.input());
        plain_input(want, 1, false);
        ASSERT_TRUE(same_bits(got.dx, want.dx)) << "input gradient";
      }
    }
  }
}

TEST(Matmul, InterleavedWeightsEqualThoseInRowsBitForBit) {
  const std::vector<Case> all = {
      {16, 16, {1}, 0, 0, false},    {32, 40, {9}, 1, 2, false}, {48, 256, {14, 28, 0, 1}, 3, 0},
      {64, 130, {3, 0, 8, 15}},      {80, 1030, {5, 6, 7, 2}},   {112, 514, {30, 70}, 0, 5},
      {16, 600, {300}, 0, 0, false}, {304, 20, {0, 520}},        {144, 1200, {40, 2, 57, 4}},
      {80, 258, {2, 1, 0, 3}},
  };
  for (const int64_t set : instruction_sets()) {
    const InstructionSet scope(set);
    cpu::CpuBackend backend(2);
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
      for (const Case& c : all) {
        SCOPED_TRACE(std::string(hwy::TargetName(set)) + " " + to_string(c));
        for (const auto& [accumulate, operands] : {std::pair(false, ops::Operands::exact),
                                                   {true, ops::Operands::exact},
                                                   {false, ops::Operands::as_weight},
                                                   {true, ops::Operands::as_weight}}) {
          if (operands == ops::Operands::as_weight && dtype != Dtype::bf16) continue;  // exact
          Problem rows(c, dtype), mixed(c, dtype);
          ops::GroupedMatmul want = rows.forward(), got = mixed.forward();
          std::vector<char> room(static_cast<size_t>(got.weight.bytes()));
          got.weight.codes =
              Tensor(room.data(), want.weight.codes.shape(), want.weight.codes.dtype());
          got.weight.layout = ops::WeightLayout::interleaved16;
          ops::change_layout(want.weight, got.weight);
          want.accumulate = got.accumulate = accumulate;
          want.scale = got.scale = accumulate ? 0.75f : 1.0f;
          want.operands = got.operands = operands;
          ASSERT_TRUE(backend.computes_directly(got));
          backend.run(want);
          backend.run(got);
          ASSERT_TRUE(same_bits(mixed.y, rows.y));
        }
      }
    }
  }
}

TEST(Matmul, HalfWeightsMayBeSubnormalOrInfinite) {
  const Case c{20, 12, {3}, 0, 0, false};
  cpu::CpuBackend backend(1);
  for (const uint16_t bits : {0x0001, 0x8001, 0x03ff, 0x7c00, 0xfc00, 0x7bff, 0x0400}) {
    Problem p(c, Dtype::f16);
    std::fill(p.narrow.begin(), p.narrow.end(), uint16_t{0});
    for (int64_t o = 0; o < c.outputs; ++o) p.narrow[static_cast<size_t>(o * c.inputs + 3)] = bits;
    f16 half(0.0f);
    half.bits = bits;
    std::fill(p.x.begin(), p.x.end(), 1.0f);
    backend.run(p.forward());
    EXPECT_THAT(p.y, testing::Each(static_cast<float>(half))) << bits;
  }
}

/// bf16 operands, f32 sums.
TEST(Matmul, Bf16OperandsAreRoundedAndSumsAreNot) {
  for (const int64_t set : instruction_sets()) {
    const InstructionSet scope(set);
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
      cpu::CpuBackend backend(2);
      for (const Case& c : cases()) {
        SCOPED_TRACE(std::string(hwy::TargetName(set)) + " " + to_string(c));
        Problem got(c, dtype), want(c, dtype);
        const auto round = [](std::vector<float>& v) {
          for (float& value : v) value = static_cast<float>(bf16(value));
        };
        ops::GroupedMatmul forward = got.forward();
        forward.operands = ops::Operands::bf16;
        const std::vector<float> weight = want.weight;
        round(want.x);
        round(want.weight);
        backend.run(forward);
        plain_forward(want, 1, false);
        for (size_t i = 0; i < got.y.size(); ++i)
          ASSERT_NEAR(got.y[i], want.y[i], 2e-6 * static_cast<double>(c.inputs)) << "forward " << i;

        ops::GroupedMatmulInput input = got.input();
        input.operands = ops::Operands::bf16;
        want.y = got.y;
        round(want.y);
        backend.run(input);
        plain_input(want, 1, false);
        for (size_t i = 0; i < got.dx.size(); ++i)
          ASSERT_NEAR(got.dx[i], want.dx[i], 1e-5 * static_cast<double>(c.outputs)) << "dx " << i;

        ops::GroupedMatmulWeight gradient = got.weight_gradient();
        gradient.operands = ops::Operands::bf16;
        got.weight = want.weight = weight;
        gradient.dweight = Tensor(got.weight.data(), gradient.dweight.shape(), Dtype::f32);
        backend.run(gradient);
        plain_weight(want, 1, true);
        for (size_t i = 0; i < got.weight.size(); ++i)
          ASSERT_NEAR(got.weight[i], want.weight[i], 1e-5 * static_cast<double>(want.rows))
              << "dweight " << i;
      }
    }
  }
}

TEST(Matmul, OperandsAsTheWeightAreBf16BesideBf16AndOtherwiseExact) {
  for (const int64_t set : instruction_sets()) {
    const InstructionSet scope(set);
    cpu::CpuBackend backend(2);
    for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
      for (const Case& c : cases()) {
        SCOPED_TRACE(std::string(hwy::TargetName(set)) + " " + to_string(c));
        Problem got(c, dtype), want(c, dtype);
        ops::GroupedMatmul as_weight = got.forward(), other = want.forward();
        as_weight.operands = ops::Operands::as_weight;
        other.operands = dtype == Dtype::bf16 ? ops::Operands::bf16 : ops::Operands::exact;
        backend.run(as_weight);
        backend.run(other);
        ASSERT_TRUE(same_bits(got.y, want.y));
      }
    }
  }
}

TEST(Matmul, RowDoesNotDependOnItsBatchOrThreads) {
  const Case c{200, 700, {61}, 0, 0, false};
  for (const int64_t set : instruction_sets()) {
    const InstructionSet scope(set);
    for (const ops::Operands operands : {ops::Operands::exact, ops::Operands::bf16}) {
      for (const Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
        Problem all(c, dtype);
        cpu::CpuBackend one(1), two(2);
        ops::GroupedMatmul op = all.forward();
        op.operands = operands;
        one.run(op);
        const std::vector<float> want = all.y;
        std::fill(all.y.begin(), all.y.end(), 0.0f);
        two.run(op);
        ASSERT_TRUE(same_bits(all.y, want)) << "threads";
        for (const int64_t batch : {1, 2, 3, 5, 8, 11, 30}) {
          std::fill(all.y.begin(), all.y.end(), 0.0f);
          for (int64_t r = 0; r < all.rows; r += batch) {
            const int64_t end = std::min(r + batch, all.rows);
            op.x = all.x_tensor().slice(r, end);
            op.y = all.y_tensor().slice(r, end);
            two.run(op);
          }
          ASSERT_TRUE(same_bits(all.y, want)) << "batches of " << batch;
        }
      }
    }
  }
}

TEST(Matmul, EmptyGroupsAndNoRowsLeaveEverythingAlone) {
  const Case c{10, 10, {0, 0}, 0, 0};
  Problem p(c);
  const std::vector<float> weight = p.weight;
  cpu::CpuBackend backend(2);
  float nothing = 0;
  const Tensor none(&nothing, {0, 10}, Dtype::f32);
  backend.run(ops::GroupedMatmul{none, p.weight_tensor(), p.offsets_tensor(), none});
  backend.run(ops::GroupedMatmulInput{none, p.weight_tensor(), p.offsets_tensor(), none});
  backend.run(ops::GroupedMatmulWeight{none, none, p.offsets_tensor(), p.weight_tensor()});
  EXPECT_EQ(p.weight, weight);
  EXPECT_EQ(nothing, 0);
}

TEST(Matmul, AnAssignedGradientOfNoRowsIsZero) {
  const Case c{10, 10, {0, 0}, 0, 0};
  Problem p(c);
  cpu::CpuBackend backend(2);
  float nothing = 0;
  const Tensor none(&nothing, {0, 10}, Dtype::f32);
  backend.run(ops::GroupedMatmulWeight{.dy = none,
                                       .x = none,
                                       .offsets = p.offsets_tensor(),
                                       .dweight = p.weight_tensor(),
                                       .accumulate = false});
  EXPECT_THAT(p.weight, testing::Each(0.0f));
}

TEST(Matmul, RefusesActivationsThatAreNotF32) {
  cpu::CpuBackend backend(1);
  std::vector<double> values(100);
  const Tensor x(values.data(), {10, 10}, Dtype::f64);
  try {
    backend.run(ops::GroupedMatmul{x, x.reshape({1, 10, 10}), {}, x});
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("device ref"));
  }
}

}  // namespace
}  // namespace mixtral
