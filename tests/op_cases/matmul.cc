#include "ops/matmul.h"

#include <cmath>
#include <numeric>
#include <optional>

#include "tests/op_cases.h"

namespace mixtral::test {
namespace {

struct Product {
  std::string name;
  std::vector<int32_t> rows;  // per group
  int64_t inputs = 1, outputs = 1;
  bool offsets = true;            // given (always, when there are several groups)
  int32_t before = 0, after = 0;  // rows of no group
  int64_t begin = 0, spare = 0;   // columns of the wide matrix before and after
  double scale = 1;
  bool accumulate = false;
  ops::Operands operands = ops::Operands::exact;
  std::optional<Dtype> weight = {};  // else the activations' type
  std::optional<Dtype> wide = {};    // of y and dy, likewise
  std::vector<Dtype> dtypes = {Dtype::f64, Dtype::f32, Dtype::bf16};
  bool benchmark = false;

  int64_t groups() const { return static_cast<int64_t>(rows.size()); }
  bool some_rows() const { return before + after > 0; }
  int64_t total() const {
    return std::accumulate(rows.begin(), rows.end(), int64_t{before} + after);
  }
  int64_t columns() const { return begin + outputs + spare; }
};

std::vector<Product> products() {
  const std::vector<Dtype> f32{Dtype::f32}, bf16{Dtype::bf16};
  return {
      {.name = "one", .rows = {1}, .offsets = false},
      {.name = "odd", .rows = {5}, .inputs = 7, .outputs = 3, .offsets = false},
      {.name = "row", .rows = {1}, .inputs = 64, .outputs = 48, .offsets = false},
      {.name = "two_rows", .rows = {2}, .inputs = 96, .outputs = 33, .offsets = false},
      {.name = "tall", .rows = {67}, .inputs = 33, .outputs = 65, .offsets = false},
      {.name = "wide", .rows = {3}, .inputs = 257, .outputs = 130, .offsets = false},
      {.name = "narrow", .rows = {19}, .inputs = 48, .outputs = 1, .offsets = false},
      {.name = "thin", .rows = {19}, .inputs = 1, .outputs = 20, .offsets = false},
      {.name = "blocks",
       .rows = {131},
       .inputs = 519,
       .outputs = 200,
       .offsets = false,
       .dtypes = {Dtype::f32, Dtype::bf16}},
      {.name = "g1", .rows = {6}, .inputs = 16, .outputs = 16},
      {.name = "g1_some_rows",
       .rows = {11},
       .inputs = 16,
       .outputs = 40,
       .before = 9,
       .after = 20,
       .accumulate = true},
      {.name = "g1_some_rows_narrow",
       .rows = {11},
       .inputs = 32,
       .outputs = 8,
       .before = 9,
       .after = 20,
       .accumulate = true},
      {.name = "g2_some_rows",
       .rows = {2, 3},
       .inputs = 64,
       .outputs = 24,
       .before = 1,
       .after = 2,
       .accumulate = true},
      {.name = "g3_ragged", .rows = {5, 0, 8}, .inputs = 17, .outputs = 9},
      {.name = "g5_one_has_all", .rows = {0, 0, 11, 0, 0}, .inputs = 24, .outputs = 31},
      {.name = "g8", .rows = {3, 1, 0, 7, 2, 33, 1, 4}, .inputs = 40, .outputs = 24},
      {.name = "g32",
       .rows = {1, 0, 0, 2, 0, 1, 0, 0, 0, 0, 3, 0, 0, 0, 1, 0,
                0, 0, 0, 4, 0, 0, 0, 0, 0, 2, 0, 0, 1, 0, 0, 1},
       .inputs = 12,
       .outputs = 20},
      {.name = "columns",
       .rows = {9},
       .inputs = 20,
       .outputs = 13,
       .offsets = false,
       .begin = 3,
       .spare = 2},
      {.name = "scaled",
       .rows = {9},
       .inputs = 20,
       .outputs = 13,
       .offsets = false,
       .scale = -0.375},
      {.name = "accumulated",
       .rows = {9},
       .inputs = 20,
       .outputs = 13,
       .offsets = false,
       .accumulate = true},
      {.name = "everything",
       .rows = {2, 0, 17},
       .inputs = 50,
       .outputs = 21,
       .begin = 21,
       .scale = 2.5,
       .accumulate = true},
      {.name = "bf16_operands",
       .rows = {18},
       .inputs = 70,
       .outputs = 37,
       .offsets = false,
       .operands = ops::Operands::bf16,
       .dtypes = f32},
      {.name = "bf16_operands_everything",
       .rows = {2, 0, 17},
       .inputs = 33,
       .outputs = 21,
       .begin = 21,
       .spare = 4,
       .scale = 2.5,
       .accumulate = true,
       .operands = ops::Operands::bf16,
       .dtypes = f32},
      {.name = "bf16_weight",
       .rows = {4, 9},
       .inputs = 70,
       .outputs = 37,
       .weight = Dtype::bf16,
       .dtypes = f32},
      {.name = "bf16_weight_row",
       .rows = {1},
       .inputs = 131,
       .outputs = 70,
       .offsets = false,
       .weight = Dtype::bf16,
       .dtypes = f32},
      {.name = "bf16_weight_and_operands",
       .rows = {4, 9},
       .inputs = 70,
       .outputs = 37,
       .operands = ops::Operands::bf16,
       .weight = Dtype::bf16,
       .dtypes = f32},
      {.name = "f16_weight",
       .rows = {4, 9},
       .inputs = 70,
       .outputs = 37,
       .weight = Dtype::f16,
       .dtypes = f32},
      {.name = "f16_weight_row",
       .rows = {1},
       .inputs = 131,
       .outputs = 70,
       .offsets = false,
       .weight = Dtype::f16,
       .dtypes = f32},
      {.name = "f32_logits",
       .rows = {18},
       .inputs = 70,
       .outputs = 37,
       .offsets = false,
       .wide = Dtype::f32,
       .dtypes = bf16},
      // A small model's layers (width 128, 8 experts of 160), and a larger one's.
      {.name = "tiny_projection",
       .rows = {768},
       .inputs = 128,
       .outputs = 256,
       .offsets = false,
       .dtypes = f32,
       .benchmark = true},
      {.name = "tiny_experts",
       .rows = {192, 192, 192, 192, 192, 192, 192, 192},
       .inputs = 128,
       .outputs = 320,
       .dtypes = f32,
       .benchmark = true},
      {.name = "seed_projection",
       .rows = {512},
       .inputs = 1024,
       .outputs = 1024,
       .offsets = false,
       .dtypes = {Dtype::f32, Dtype::bf16},
       .benchmark = true},
      {.name = "seed_experts",
       .rows = {100, 28, 120, 136, 150, 106, 128, 256},
       .inputs = 1024,
       .outputs = 4096,
       .dtypes = {Dtype::f32, Dtype::bf16},
       .benchmark = true},
      {.name = "seed_decode",
       .rows = {1, 0, 0, 1, 0, 0, 0, 0},
       .inputs = 1024,
       .outputs = 8192,
       .dtypes = f32,
       .benchmark = true},
      {.name = "seed_decode_bf16_weight",
       .rows = {1, 0, 0, 1, 0, 0, 0, 0},
       .inputs = 1024,
       .outputs = 8192,
       .weight = Dtype::bf16,
       .dtypes = f32,
       .benchmark = true},
      {.name = "seed_vocabulary",
       .rows = {256},
       .inputs = 1024,
       .outputs = 32000,
       .offsets = false,
       .dtypes = f32,
       .benchmark = true},
  };
}

Tensor make_offsets(Rig& rig, const Product& p) {
  if (!p.offsets) return {};
  std::vector<int32_t> offsets = offsets_of(p.rows);
  for (int32_t& offset : offsets) offset += p.before;
  return rig.indices("offsets", {p.groups() + 1}, offsets);
}

Tensor make_weight(Rig& rig, const Product& p) {
  return rig.input("weight", {p.groups(), p.outputs, p.inputs}, p.weight.value_or(rig.dtype()),
                   {1 / std::sqrt(static_cast<double>(p.inputs))});
}

Dtype wide_dtype(const Rig& rig, const Product& p) { return p.wide.value_or(rig.dtype()); }

/// y = x Wᵀ for what its gradient is taken of; y's other columns are constants.
ops::GroupedMatmul make_forward(Rig& rig, const Product& p) {
  ops::GroupedMatmul op{.x = rig.input("x", {p.total(), p.inputs}),
                        .weight = make_weight(rig, p),
                        .offsets = make_offsets(rig, p),
                        .y = rig.input("y", {p.total(), p.columns()}, wide_dtype(rig, p)),
                        .y_begin = p.begin,
                        .scale = p.scale,
                        .operands = p.operands};
  return op;
}

void forward(Rig& rig, const Product& p) {
  ops::GroupedMatmul op{.x = rig.input("x", {p.total(), p.inputs}),
                        .weight = make_weight(rig, p),
                        .offsets = make_offsets(rig, p),
                        .y = {},
                        .y_begin = p.begin,
                        .scale = p.scale,
                        .accumulate = p.accumulate,
                        .operands = p.operands};
  const Shape shape{p.total(), p.columns()};
  const bool whole = p.columns() == p.outputs && !p.accumulate;
  op.y = whole ? rig.output("y", shape, wide_dtype(rig, p))
               : rig.updated("y", shape, wide_dtype(rig, p));
  rig.set_inner(p.inputs);
  rig.run(op);
}

void input_gradient(Rig& rig, const Product& p) {
  const auto y = make_forward(rig, p);
  const Tensor dy = rig.input("dy", y.y.shape(), wide_dtype(rig, p));
  const Tensor dx = p.accumulate ? rig.updated("dx", y.x.shape()) : rig.output("dx", y.x.shape());
  if (!p.benchmark) rig.prepare(y);
  rig.loss(y.y, dy);
  rig.gradient(y.x, dx, p.accumulate);
  rig.set_inner(p.outputs);
  rig.run(ops::GroupedMatmulInput{.dy = dy,
                                  .weight = y.weight,
                                  .offsets = y.offsets,
                                  .dx = dx,
                                  .dy_begin = p.begin,
                                  .scale = p.scale,
                                  .accumulate = p.accumulate,
                                  .operands = p.operands});
}

void weight_gradient(Rig& rig, const Product& p, bool accumulate) {
  const auto y = make_forward(rig, p);
  const Tensor dy = rig.input("dy", y.y.shape(), wide_dtype(rig, p));
  const Tensor dweight = accumulate ? rig.updated("dweight", y.weight.shape, rig.statistics())
                                    : rig.output("dweight", y.weight.shape, rig.statistics());
  if (!p.benchmark) rig.prepare(y);
  rig.loss(y.y, dy);
  rig.gradient(y.weight.tensor(), dweight, accumulate);
  rig.set_inner(p.total());
  rig.run(ops::GroupedMatmulWeight{.dy = dy,
                                   .x = y.x,
                                   .offsets = y.offsets,
                                   .dweight = dweight,
                                   .dy_begin = p.begin,
                                   .scale = p.scale,
                                   .accumulate = accumulate,
                                   .operands = p.operands});
}

void added_weight_gradient(Rig& rig, const Product& p) { weight_gradient(rig, p, true); }
void assigned_weight_gradient(Rig& rig, const Product& p) { weight_gradient(rig, p, false); }

}  // namespace

std::vector<OpCase> matmul_cases() {
  std::vector<OpCase> cases;
  const auto add = [&](const std::string& op, void (*build)(Rig&, const Product&)) {
    for (const Product& p : products())
      if (build == forward || !p.some_rows())
        cases.push_back(
            {op + "_" + p.name, [=](Rig& rig) { build(rig, p); }, p.dtypes, p.benchmark});
  };
  add("GroupedMatmul", forward);
  add("GroupedMatmulInput", input_gradient);
  add("GroupedMatmulWeight", added_weight_gradient);
  add("GroupedMatmulWeightAssigned", assigned_weight_gradient);
  return cases;
}

}  // namespace mixtral::test
