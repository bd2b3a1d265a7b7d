#include "ops/elementwise.h"

#include <fmt/format.h>

#include "tests/op_cases.h"

namespace mixtral::test {
namespace {

const std::vector<Dtype> kFloats{Dtype::f64, Dtype::f32, Dtype::bf16};
const std::vector<Dtype> kOnce{Dtype::f32};

/// For a case that names its types itself: f64 is not every backend's.
std::vector<Dtype> run_once(std::initializer_list<Dtype> types) {
  for (Dtype type : types)
    if (type == Dtype::f64) return {Dtype::f64};
  return kOnce;
}

OpCase fill(Shape shape, Dtype dtype, double value) {
  return {fmt::format("Fill_{}_{}", shape.numel(), to_string(dtype)),
          [=](Rig& rig) { rig.run(ops::Fill{rig.output("x", shape, dtype), value}); },
          run_once({dtype})};
}

OpCase convert(int64_t count, Dtype from, Dtype to, bool benchmark = false) {
  return {fmt::format("Convert_{}_{}_to_{}", count, to_string(from), to_string(to)),
          [=](Rig& rig) {
            rig.run(ops::Convert{rig.input("x", {count}, from, {3}), rig.output("y", {count}, to)});
          },
          run_once({from, to}), benchmark};
}

OpCase add_scaled(int64_t count, Dtype from, Dtype to, double scale, bool benchmark = false) {
  return {fmt::format("AddScaled_{}_{}_to_{}", count, to_string(from), to_string(to)),
          [=](Rig& rig) {
            rig.run(ops::AddScaled{rig.input("x", {count}, from), rig.updated("y", {count}, to),
                                   scale});
          },
          run_once({from, to}), benchmark};
}

OpCase random_normal(int64_t count, uint64_t seed, uint64_t stream, double deviation,
                     bool benchmark = false) {
  return {fmt::format("RandomNormal_{}", count),
          [=](Rig& rig) {
            rig.run(ops::RandomNormal{rig.output("x", {count}), seed, stream, deviation});
          },
          benchmark ? kOnce : kFloats, benchmark};
}

OpCase dropout(const std::string& name, int64_t count, double probability, bool in_place) {
  return {"Dropout_" + name,
          [=](Rig& rig) {
            const Shape shape{count};
            ops::Dropout op{.x = rig.input("x", shape),
                            .y = rig.prepared("forward", shape),
                            .seed = rig.values("seed", {1}, Dtype::i64, {3}),
                            .probability = probability,
                            .stream = 8};
            rig.prepare(op);
            const Tensor x = op.x, forward = op.y;
            op.x = in_place ? rig.updated("dy", shape) : rig.input("dy", shape);
            op.y = in_place ? op.x : rig.output("dx", shape);
            rig.loss(forward, op.x);
            rig.gradient(x, op.y);
            rig.run(op);
          },
          kFloats};
}

}  // namespace

std::vector<OpCase> elementwise_cases() {
  std::vector<OpCase> cases{
      fill({1}, Dtype::f32, 0.1),    fill({3, 7}, Dtype::f64, -2.5), fill({33}, Dtype::bf16, 0.3),
      fill({5, 5}, Dtype::f16, 1.7), fill({19}, Dtype::i32, -1),     fill({19}, Dtype::i64, 1e12),
      fill({300}, Dtype::u8, 255),   fill({1000}, Dtype::f32, 0),
  };
  for (Dtype from : {Dtype::f64, Dtype::f32, Dtype::bf16, Dtype::f16})
    for (Dtype to : {Dtype::f64, Dtype::f32, Dtype::bf16, Dtype::f16})
      cases.push_back(convert(131, from, to));
  cases.push_back(convert(1, Dtype::f32, Dtype::bf16));
  cases.push_back(convert(17, Dtype::i32, Dtype::i32));
  cases.push_back(convert(5, Dtype::i64, Dtype::i64));
  cases.push_back(convert(3, Dtype::u8, Dtype::u8));
  cases.push_back(convert(int64_t{1} << 24, Dtype::f32, Dtype::bf16, true));
  cases.push_back(add_scaled(1, Dtype::f32, Dtype::f32, 1));
  cases.push_back(add_scaled(131, Dtype::f32, Dtype::f32, -0.3));
  cases.push_back(add_scaled(131, Dtype::f64, Dtype::f64, 2));
  cases.push_back(add_scaled(70, Dtype::bf16, Dtype::bf16, 0.5));
  cases.push_back(add_scaled(70, Dtype::bf16, Dtype::f32, 0.5));
  cases.push_back(add_scaled(70, Dtype::f32, Dtype::bf16, 0.5));
  cases.push_back(add_scaled(int64_t{1} << 24, Dtype::f32, Dtype::f32, 1e-6, true));
  cases.push_back(random_normal(1, 1, 0, 1));
  cases.push_back(random_normal(1001, 9, uint64_t{1} << 40, 0.02));
  cases.push_back(random_normal(int64_t{1} << 22, 9, 3, 0.02, true));
  cases.push_back(dropout("none", 37, 0, false));
  cases.push_back(dropout("tenth", 101, 0.1, false));
  cases.push_back(dropout("most_in_place", 66, 0.9, true));
  return cases;
}

}  // namespace mixtral::test
