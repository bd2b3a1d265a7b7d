// Products of weights in fp8 by activations that are rounded to fp8 (ops::Operands::fp8) on a GPU,
// beside the reference. Skipped without a GPU.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "cuda/backend.h"
#include "ref/backend.h"
#include "tests/cuda/gpu_test.h"
#include "tests/op_cases.h"

namespace mixtral::test {
namespace {

struct Case {
  std::vector<int32_t> rows;  // per group; one group: without offsets
  int64_t outputs, inputs;
  int64_t begin = 0, spare = 0;  // columns of y beside the product's
  enum class Kind { plain, gated, gated_kept } kind = Kind::plain;

  int64_t groups() const { return static_cast<int64_t>(rows.size()); }
  int64_t total() const { return std::accumulate(rows.begin(), rows.end(), int64_t{0}); }
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << fmt::format("{} by {}, {} and {} beside, kind {}, rows {}", c.outputs, c.inputs, c.begin,
                      c.spare, static_cast<int>(c.kind), fmt::join(c.rows, " "));
}

/// Tiles of 128 x 128 that lie above each other, beside each other, and alone; whole and not.
std::vector<Case> cases() {
  std::vector<Case> all;
  const std::vector<std::vector<int32_t>> rows = {
      {65}, {300}, {128}, {300, 0, 513, 64, 128}, {1, 0, 0, 90}, {70, 0, 1, 200, 33, 0, 128, 5}};
  for (const auto& counts : rows)
    for (const auto& [outputs, inputs] :
         {std::pair(128, 512), std::pair(520, 1024), std::pair(72, 2048), std::pair(264, 4096)})
      all.push_back({counts, outputs, inputs});
  all.push_back({{200}, 128, 512, 64, 32});
  for (const auto kind : {Case::Kind::gated, Case::Kind::gated_kept})
    for (const auto& counts : rows)
      for (const auto& [width, inputs] : {std::pair(64, 512), std::pair(200, 1024)})
        if (counts.size() > 1) all.push_back({counts, 2 * width, inputs, 0, 0, kind});
  return all;
}

/// Rows of x of every size, some of them with a number far above the others, one of zeros.
std::vector<double> activations(RandomStream& random, int64_t rows, int64_t columns) {
  std::vector<double> values;
  for (int64_t r = 0; r < rows; ++r) {
    const double size = r == 3 ? 0 : std::exp2(static_cast<double>(random.below(12)) - 6);
    for (int64_t c = 0; c < columns; ++c) values.push_back(size * random.normal());
    if (r % 5 == 0) values[static_cast<size_t>(r * columns + r % columns)] *= 100;
  }
  return values;
}

void build(Rig& rig, const Case& c) {
  const int64_t all = c.groups() * c.outputs;
  int piece = 0;
  const ops::Weight weight = ops::make_weight(
      {c.groups(), c.outputs, c.inputs}, ops::WeightFormat::fp8, [&](Shape shape, Dtype dtype) {
        return rig.prepared(fmt::format("piece {}", piece++), shape, dtype);
      });
  rig.prepare(ops::Quantize{
      .x = rig.input("weight", {all, c.inputs}, {1 / std::sqrt(static_cast<double>(c.inputs))}),
      .weight = weight});
  const Tensor x = rig.values("x", {c.total(), c.inputs}, rig.dtype(),
                              activations(rig.random(), c.total(), c.inputs));
  const Tensor offsets =
      c.groups() == 1 ? Tensor() : rig.indices("offsets", {c.groups() + 1}, offsets_of(c.rows));
  rig.set_inner(c.inputs);
  if (c.kind == Case::Kind::plain) {
    rig.run(ops::GroupedMatmul{.x = x,
                               .weight = weight,
                               .offsets = offsets,
                               .y = rig.updated("y", {c.total(), c.begin + c.outputs + c.spare}),
                               .y_begin = c.begin,
                               .scale = 0.75,
                               .operands = ops::Operands::fp8});
    return;
  }
  std::vector<int32_t> source(static_cast<size_t>(c.total()));
  std::iota(source.begin(), source.end(), 0);
  for (size_t r = source.size(); r > 1; --r)
    std::swap(source[r - 1], source[rig.random().below(r)]);
  const Shape wide{c.total(), c.outputs};
  const bool keep = c.kind == Case::Kind::gated_kept;
  rig.run(ops::GroupedMatmulSwiGlu{
      .x = x,
      .weight = weight,
      .offsets = offsets,
      .weights = rig.input("weights", {c.total(), 1}, rig.statistics(), {0.2, 0.5}),
      .source = rig.indices("source", {c.total()}, source),
      .gate_up = keep ? rig.output("gate_up", wide) : rig.room("gate_up", wide),
      .h = rig.output("h", {c.total(), c.outputs / 2}),
      .keep_gate_up = keep,
      .operands = ops::Operands::fp8});
}

class Scaled : public GpuTest<Case> {};

TEST_P(Scaled, EqualsReference) {
  SCOPED_TRACE(fmt::format("MIXTRAL_TEST_SEED={}", test_seed()));
  ref::RefBackend ref;
  Rig expected(ref, Dtype::bf16, test_seed());
  build(expected, GetParam());
  expected.execute();
  Rig tested(gpu(), expected);
  build(tested, GetParam());
  tested.execute();
  EXPECT_EQ(difference(expected, tested), "");
}

TEST_P(Scaled, SameBitsAgainAndFromARecording) {
  expect_same_bits_again(gpu(), Dtype::bf16, [](Rig& rig) { build(rig, GetParam()); });
}

INSTANTIATE_TEST_SUITE_P(Products, Scaled, testing::ValuesIn(cases()));

/// What the backend says that it multiplies as it is.
TEST(ScaledShapes, AreTakenWhereTheyFit) {
  if (cuda::device_count() == 0) GTEST_SKIP() << "no GPU that the CUDA backend can use";
  const std::unique_ptr<Backend> gpu = cuda::make_backend(0);
  const auto taken = [&](ops::Operands operands, int64_t rows, int64_t inputs, int64_t outputs) {
    Rig rig(*gpu, Dtype::bf16, test_seed());
    int piece = 0;
    const ops::GroupedMatmul op{
        .x = rig.input("x", {rows, inputs}),
        .weight = ops::make_weight({1, outputs, inputs}, ops::WeightFormat::fp8,
                                   [&](Shape shape, Dtype dtype) {
                                     return rig.room(fmt::format("piece {}", piece++), shape,
                                                     dtype);
                                   }),
        .offsets = {},
        .y = rig.output("y", {rows, outputs}),
        .operands = operands};
    return gpu->computes_directly(op);
  };
  EXPECT_TRUE(taken(ops::Operands::fp8, 1000, 512, 64));
  EXPECT_FALSE(taken(ops::Operands::bf16, 1000, 512, 64));
  EXPECT_FALSE(taken(ops::Operands::fp8, 1000, 640, 64));
  EXPECT_FALSE(taken(ops::Operands::fp8, 1000, 512, 68));
  EXPECT_TRUE(taken(ops::Operands::bf16, 8, 512, 64));  // streamed
}

}  // namespace
}  // namespace mixtral::test
