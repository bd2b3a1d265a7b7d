// Which product a projection of a quantized weight is: that of the dequantized weight, to the bit,
// or that of the codes, near it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backends/registry.h"
#include "base/random.h"
#include "cpu/integer_matmul.h"
#include "nn/layout.h"
#include "nn/linear.h"

namespace mixtral::nn {
namespace {

using ops::Operands;
using ops::WeightFormat;
using ops::WeightLayout;

Tensor normal(Arena& arena, RandomStream& random, Shape shape) {
  const Tensor made = arena.allocate(shape, Dtype::f32);
  for (int64_t i = 0; i < made.numel(); ++i)
    made.as<float>()[i] = static_cast<float>(random.normal());
  return made;
}

/// A parameter with normal numbers, in the backend's layout or in plain rows.
class Projection {
 public:
  Projection(Backend& backend, Shape shape, WeightFormat format, WeightLayout layout)
      : linear_([&] {
          Parameter made = make_parameter("w", shape, Role::projection);
          made.format = format;
          return made;
        }()),
        store_(
            backend, [this](const ParameterVisitor& visit) { linear_.for_each_parameter(visit); },
            Dtype::f32, Dtype::f32) {
    const ParameterSource all = [this](const ParameterVisitor& visit) {
      linear_.for_each_parameter(visit);
    };
    initialise(backend, all, {.seed = 5, .deviation = 0.1});
    if (layout == WeightLayout::rows) use_plain_rows(backend, all);
  }
  const Linear& linear() const { return linear_; }
  const ops::Weight& weight() { return linear_.parameter().packed; }

 private:
  Linear linear_;
  ParameterStore store_;
};

TEST(IntegerLinear, IsChosenByTheOperandsAndTheLayout) {
  if (cpu::integer_kernel_sets().empty()) GTEST_SKIP() << "no kernels for this processor";
  const auto backend = make_backend("cpu", 2);
  Arena arena(*backend);
  RandomStream random(31, 0);
  for (const ops::FormatRow& row : ops::kWeightFormats) {
    const WeightFormat format(row);
    if (!cpu::integer_format(format) || !row.pack) continue;
    const Shape shape{2, 24, 2 * std::max<int64_t>(format.unit(), row.block)};
    EXPECT_EQ(backend->preferred_layout(format, shape), WeightLayout::interleaved8);
    EXPECT_EQ(backend->preferred_layout(format, {2, 20, shape[2]}), WeightLayout::rows);
    const Tensor x = normal(arena, random, {5, shape[2]});
    const Tensor offsets = arena.allocate({3}, Dtype::i32);
    const std::vector<int32_t> starts{0, 2, 5};
    std::memcpy(offsets.data(), starts.data(), 12);
    for (const WeightLayout layout : {WeightLayout::interleaved8, WeightLayout::rows}) {
      Projection projection(*backend, shape, format, layout);
      ASSERT_EQ(projection.weight().layout, layout);
      const Tensor dense = arena.allocate({48, shape[2]}, Dtype::f32);
      backend->run(ops::Dequantize{.weight = projection.weight(), .y = dense, .offsets = {}});
      const Tensor expected = arena.allocate({5, 24}, Dtype::f32);
      backend->run(ops::GroupedMatmul{
          .x = x, .weight = dense.reshape(shape), .offsets = offsets, .y = expected});
      for (const Operands operands : {Operands::exact, Operands::as_weight}) {
        Context ctx(*backend, arena, Dtype::f32);
        ctx.set_operands(operands);
        const Tensor y = arena.allocate({5, 24}, Dtype::f32);
        projection.linear().forward(ctx, x, {.offsets = offsets}, y);
        double error = 0, size = 0;
        for (int64_t i = 0; i < y.numel(); ++i) {
          const auto want = static_cast<double>(expected.as<float>()[i]);
          error += std::pow(static_cast<double>(y.as<float>()[i]) - want, 2);
          size += want * want;
        }
        const bool direct = layout == WeightLayout::interleaved8 && operands == Operands::as_weight;
        EXPECT_EQ(error > 0, direct) << row.name;
        EXPECT_LT(error, 4e-4 * size) << row.name;  // 2%
      }
    }
  }
}

}  // namespace
}  // namespace mixtral::nn
