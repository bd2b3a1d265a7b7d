#include "ops/quantize.h"

namespace mixtral::ops {
namespace {

void check_operands(std::string_view name, const Tensor& values, const Weight& weight) {
  expect_weight("weight", weight);
  CHECK(!weight.dense(), "numbers of a dense weight are converted, not quantized");
  detail::expect_shape(name, values, {weight.rows(), weight.inputs()});
  detail::expect_float(name, values);
}

}  // namespace

void check(const Quantize& op) {
  check_operands("x", op.x, op.weight);
  CHECK(op.weight.layout == WeightLayout::rows, "quantizing writes plain rows");
}
void check(const Dequantize& op) {
  check_operands("y", op.y, op.weight);
  if (!op.offsets) return;
  detail::expect_shape("offsets", op.offsets, {op.weight.groups() + 1});
  detail::expect_dtype("offsets", op.offsets, Dtype::i32);
}

Cost cost(const Quantize& op) {
  return {2 * static_cast<double>(op.x.numel()),
          static_cast<double>(op.x.bytes() + op.weight.bytes())};
}
Cost cost(const Dequantize& op) {
  return {static_cast<double>(op.y.numel()), static_cast<double>(op.y.bytes() + op.weight.bytes())};
}

}  // namespace mixtral::ops
