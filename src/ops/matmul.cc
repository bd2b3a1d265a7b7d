#include "ops/matmul.h"

#include <algorithm>

namespace mixtral::ops {
namespace {

using detail::expect_dtype;
using detail::expect_float;
using detail::expect_shape;

/// `narrow` is [N, I]; `wide` has N rows and at least begin + O columns; weight is [G, O, I].
void check_product(const Tensor& narrow, const Tensor& wide, const Weight& weight,
                   const Tensor& offsets, int64_t begin) {
  expect_weight("weight", weight);
  expect_shape("x", narrow, {-1, weight.dim(2)});
  expect_shape("y", wide, {narrow.dim(0), -1});
  expect_float("x", narrow);
  expect_float("y", wide);
  CHECK(begin >= 0 && begin + weight.dim(1) <= wide.dim(1), "columns out of range");
  if (offsets.empty()) {
    CHECK(weight.dim(0) == 1, "several groups need offsets");
  } else {
    expect_shape("offsets", offsets, {weight.dim(0) + 1});
    expect_dtype("offsets", offsets, Dtype::i32);
  }
}

Cost cost_product(const Tensor& narrow, const Tensor& wide, const Weight& weight) {
  const auto rows = static_cast<double>(narrow.dim(0));
  // Of the groups, at most as many are read as there are rows.
  const auto groups = static_cast<double>(std::max<int64_t>(weight.groups(), 1));
  const double read = static_cast<double>(weight.bytes()) * std::min(1.0, rows / groups);
  const auto outputs = static_cast<double>(weight.dim(1));
  const auto inputs = static_cast<double>(weight.dim(2));
  return {2 * rows * outputs * inputs,
          static_cast<double>(narrow.bytes()) + read +
              rows * outputs * static_cast<double>(size_of(wide.dtype()))};
}

}  // namespace

bool rounds_to_bf16(Operands operands, const Weight& weight) {
  return operands == Operands::bf16 || operands == Operands::fp8 ||
         (operands == Operands::as_weight && weight.format == WeightFormat::bf16);
}

void check(const GroupedMatmul& op) {
  check_product(op.x, op.y, op.weight, op.offsets, op.y_begin);
}
void check(const GroupedMatmulInput& op) {
  check_product(op.dx, op.dy, op.weight, op.offsets, op.dy_begin);
}
void check(const GroupedMatmulWeight& op) {
  expect_shape("dweight", op.dweight, {-1, -1, -1});
  check_product(op.x, op.dy, op.dweight, op.offsets, op.dy_begin);
  expect_dtype("dweight", op.dweight, statistics_dtype(op.x.dtype()));
}
Cost cost(const GroupedMatmul& op) { return cost_product(op.x, op.y, op.weight); }
Cost cost(const GroupedMatmulInput& op) { return cost_product(op.dx, op.dy, op.weight); }
Cost cost(const GroupedMatmulWeight& op) {
  Cost c = cost_product(op.x, op.dy, op.dweight);
  if (op.accumulate) c.bytes += static_cast<double>(op.dweight.bytes());  // read and written
  return c;
}

}  // namespace mixtral::ops
