#include "ops/norm.h"

#include <optional>

#include "tests/op_cases.h"

namespace mixtral::test {
namespace {

enum class Sum { none, separate, over_x, over_residual };

struct Norm {
  std::string name;
  int64_t rows = 1, width = 1;
  Sum sum = Sum::none;  // the residual, and where its sum goes
  bool rstd = true;
  double eps = 1e-5;
  Spread spread = {};
  std::optional<Dtype> weight = {};
  std::vector<Dtype> dtypes = {Dtype::f64, Dtype::f32, Dtype::bf16};
  bool benchmark = false;
};

void forward(Rig& rig, const Norm& c) {
  const Shape shape{c.rows, c.width};
  ops::RmsNorm op;
  op.eps = c.eps;
  op.x = c.sum == Sum::over_x ? rig.updated("x", shape, c.spread) : rig.input("x", shape, c.spread);
  if (c.sum != Sum::none)
    op.residual =
        c.sum == Sum::over_residual ? rig.updated("residual", shape) : rig.input("residual", shape);
  if (c.sum == Sum::separate) op.sum = rig.output("sum", shape);
  if (c.sum == Sum::over_x) op.sum = op.x;
  if (c.sum == Sum::over_residual) op.sum = op.residual;
  op.weight = rig.input("weight", {c.width}, c.weight.value_or(rig.dtype()), {0.2, 1});
  op.y = rig.output("y", shape);
  if (c.rstd) op.rstd = rig.output("rstd", {c.rows}, rig.statistics());
  rig.set_inner(c.width);
  rig.run(op);
}

struct NormGradient {
  std::string name;
  int64_t rows = 1, width = 1;
  bool accumulate = false, frozen = false;
  double eps = 1e-5;
  std::optional<Dtype> weight = {};
  std::vector<Dtype> dtypes = {Dtype::f64, Dtype::f32, Dtype::bf16};
  bool benchmark = false;
};

void backward(Rig& rig, const NormGradient& c) {
  const Shape shape{c.rows, c.width};
  const ops::RmsNorm y{
      .x = rig.input("x", shape),
      .residual = {},
      .weight = rig.input("weight", {c.width}, c.weight.value_or(rig.dtype()), {0.2, 1}),
      .sum = {},
      .y = rig.prepared("y", shape),
      .rstd = rig.prepared("rstd", {c.rows}, rig.statistics()),
      .eps = c.eps};
  rig.prepare(y);
  ops::RmsNormBackward op{.dy = rig.input("dy", shape),
                          .x = y.x,
                          .weight = y.weight,
                          .rstd = y.rstd,
                          .dx = {},
                          .dweight = {},
                          .accumulate = c.accumulate};
  op.dx = c.accumulate ? rig.updated("dx", shape) : rig.output("dx", shape);
  if (!c.frozen) op.dweight = rig.updated("dweight", {c.width}, rig.statistics());
  rig.loss(y.y, op.dy);
  rig.gradient(y.x, op.dx, c.accumulate);
  if (!c.frozen) rig.gradient(y.weight, op.dweight, true);
  rig.set_inner(std::max(c.width, c.rows));
  rig.set_magnitude(1);  // dx is nothing when D is 1
  rig.run(op);
}

}  // namespace

std::vector<OpCase> norm_cases() {
  const std::vector<Dtype> f32{Dtype::f32};
  std::vector<OpCase> cases;
  for (const Norm& c : std::vector<Norm>{
           {.name = "one"},
           {.name = "row", .rows = 1, .width = 8},
           {.name = "odd", .rows = 3, .width = 7},
           {.name = "d64", .rows = 5, .width = 64},
           {.name = "d129", .rows = 4, .width = 129},
           {.name = "d1000_eps", .rows = 2, .width = 1000, .eps = 1e-2},
           {.name = "zeros", .rows = 2, .width = 20, .spread = {0}},
           {.name = "small", .rows = 2, .width = 20, .spread = {1e-3}},
           {.name = "large", .rows = 2, .width = 20, .spread = {1e4}},
           {.name = "no_rstd", .rows = 3, .width = 33, .rstd = false},
           {.name = "residual", .rows = 9, .width = 33, .sum = Sum::separate},
           {.name = "residual_sum_over_x", .rows = 9, .width = 40, .sum = Sum::over_x},
           {.name = "residual_sum_over_residual",
            .rows = 9,
            .width = 31,
            .sum = Sum::over_residual},
           {.name = "bf16_weight", .rows = 3, .width = 33, .weight = Dtype::bf16, .dtypes = f32},
           {.name = "f16_weight", .rows = 3, .width = 33, .weight = Dtype::f16, .dtypes = f32},
           {.name = "seed",
            .rows = 512,
            .width = 1024,
            .sum = Sum::separate,
            .dtypes = {Dtype::f32, Dtype::bf16},
            .benchmark = true}})
    cases.push_back(
        {"RmsNorm_" + c.name, [=](Rig& rig) { forward(rig, c); }, c.dtypes, c.benchmark});
  for (const NormGradient& c : std::vector<NormGradient>{
           {.name = "one", .eps = 0.5},  // smooth enough for differences
           {.name = "row", .rows = 1, .width = 8},
           {.name = "odd", .rows = 3, .width = 7},
           {.name = "d64", .rows = 5, .width = 64},
           {.name = "tall", .rows = 300, .width = 17, .dtypes = {Dtype::f32, Dtype::bf16}},
           {.name = "d129_accumulated", .rows = 4, .width = 129, .accumulate = true},
           {.name = "frozen", .rows = 4, .width = 33, .frozen = true},
           {.name = "bf16_weight", .rows = 3, .width = 33, .weight = Dtype::bf16, .dtypes = f32},
           {.name = "seed",
            .rows = 512,
            .width = 1024,
            .accumulate = true,
            .dtypes = {Dtype::f32, Dtype::bf16},
            .benchmark = true}})
    cases.push_back(
        {"RmsNormBackward_" + c.name, [=](Rig& rig) { backward(rig, c); }, c.dtypes, c.benchmark});
  return cases;
}

}  // namespace mixtral::test
