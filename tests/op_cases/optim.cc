#include "ops/optim.h"

#include <cmath>
#include <limits>
#include <optional>

#include "tests/op_cases.h"

namespace mixtral::test {
namespace {

const std::vector<Dtype> kStatistics{Dtype::f64, Dtype::f32};

struct Norm {
  std::string name;
  Shape shape;
  bool accumulate = false;
  double deviation = 1;
  bool benchmark = false;
};

void squared_norm(Rig& rig, const Norm& c) {
  const ops::SquaredNorm op{.x = rig.input("x", c.shape, rig.statistics(), {c.deviation}),
                            .sum = c.accumulate ? rig.updated_values("sum", {1}, Dtype::f64, {12.5})
                                                : rig.output("sum", {1}, Dtype::f64),
                            .accumulate = c.accumulate};
  rig.run(op);
}

struct Update {
  std::string name;
  int64_t count = 1;
  int64_t step = 1;
  double decay = 0, clip = 0;
  double squared_norm = 4;
  bool bf16_state = false, model = false;
  std::vector<Dtype> dtypes = kStatistics;
  bool benchmark = false;
};

void adamw(Rig& rig, const Update& c) {
  const Dtype type = rig.statistics(), state = c.bf16_state ? Dtype::bf16 : type;
  const Shape shape{c.count};
  ops::AdamW op{.value = rig.updated("value", shape, type),
                .grad = rig.input("grad", shape, type, {0.1}),
                .m = rig.updated("m", shape, state, {0.05}),
                .v = {},
                .model = {},
                .schedule = {},
                .squared_norm = {},
                .weight_decay = c.decay,
                .clip = c.clip,
                .seed = 5};
  std::vector<double> v;
  for (int64_t i = 0; i < c.count; ++i) v.push_back(0.01 * rig.random().uniform());
  op.v = rig.updated_values("v", shape, state, v);
  if (c.model) op.model = rig.updated("model", shape, Dtype::bf16);
  const auto t = static_cast<double>(c.step);
  op.schedule = rig.values("schedule", {4}, Dtype::f64,
                           {3e-3, 1 - std::pow(op.beta1, t), 1 - std::pow(op.beta2, t), t});
  op.squared_norm = rig.values("squared_norm", {1}, Dtype::f64, {c.squared_norm});
  rig.run(op);
}

}  // namespace

std::vector<OpCase> optim_cases() {
  std::vector<OpCase> cases;
  for (const Norm& c :
       std::vector<Norm>{{.name = "one", .shape = {1}},
                         {.name = "odd", .shape = {7, 3}},
                         {.name = "accumulated", .shape = {1001}, .accumulate = true},
                         {.name = "long", .shape = {70001}},
                         {.name = "large", .shape = {33}, .deviation = 1e25},
                         {.name = "seed", .shape = {int64_t{1} << 24}, .benchmark = true}})
    cases.push_back({"SquaredNorm_" + c.name, [=](Rig& rig) { squared_norm(rig, c); },
                     c.benchmark ? std::vector<Dtype>{Dtype::f32} : kStatistics, c.benchmark});
  const double infinity = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<Dtype> f32{Dtype::f32};
  for (const Update& c : std::vector<Update>{
           {.name = "one"},
           {.name = "odd", .count = 13, .step = 3},
           {.name = "decay", .count = 37, .step = 100, .decay = 0.1},
           {.name = "clipped", .count = 37, .step = 2, .clip = 1},
           {.name = "not_clipped", .count = 37, .step = 2, .clip = 3},
           {.name = "model", .count = 70, .step = 9, .decay = 0.1, .clip = 1, .model = true},
           {.name = "bf16_state",
            .count = 301,
            .step = 9,
            .decay = 0.1,
            .clip = 1,
            .bf16_state = true,
            .model = true,
            .dtypes = f32},
           {.name = "infinite_norm",
            .count = 37,
            .clip = 1,
            .squared_norm = infinity,
            .model = true},
           {.name = "nan_norm",
            .count = 37,
            .squared_norm = nan,
            .bf16_state = true,
            .dtypes = f32},
           {.name = "seed",
            .count = int64_t{1} << 23,
            .decay = 0.1,
            .clip = 1,
            .dtypes = f32,
            .benchmark = true},
           {.name = "seed_bf16_state",
            .count = int64_t{1} << 23,
            .decay = 0.1,
            .clip = 1,
            .bf16_state = true,
            .dtypes = f32,
            .benchmark = true}})
    cases.push_back({"AdamW_" + c.name, [=](Rig& rig) { adamw(rig, c); }, c.dtypes, c.benchmark});
  return cases;
}

}  // namespace mixtral::test
