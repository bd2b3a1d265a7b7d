#include "ops/optim.h"

namespace mixtral::ops {

using detail::expect_dtype;
using detail::expect_shape;

void check(const SquaredNorm& op) {
  CHECK(op.x.dtype() == Dtype::f32 || op.x.dtype() == Dtype::f64);
  expect_shape("sum", op.sum, {1});
  expect_dtype("sum", op.sum, Dtype::f64);
}

void check(const AdamW& op) {
  expect_shape("value", op.value, {-1});
  CHECK(op.value.dtype() == Dtype::f32 || op.value.dtype() == Dtype::f64);
  expect_shape("grad", op.grad, op.value.shape());
  expect_dtype("grad", op.grad, op.value.dtype());
  expect_shape("m", op.m, op.value.shape());
  expect_shape("v", op.v, op.value.shape());
  CHECK(op.m.dtype() == op.value.dtype() || op.m.dtype() == Dtype::bf16);
  expect_dtype("v", op.v, op.m.dtype());
  if (op.model) {
    expect_shape("model", op.model, op.value.shape());
    expect_dtype("model", op.model, Dtype::bf16);
  }
  expect_shape("schedule", op.schedule, {4});
  expect_dtype("schedule", op.schedule, Dtype::f64);
  expect_shape("squared_norm", op.squared_norm, {1});
  expect_dtype("squared_norm", op.squared_norm, Dtype::f64);
}

Cost cost(const SquaredNorm& op) {
  return {2 * static_cast<double>(op.x.numel()), static_cast<double>(op.x.bytes())};
}
Cost cost(const AdamW& op) {
  return {15 * static_cast<double>(op.value.numel()),
          static_cast<double>(2 * op.value.bytes() + op.grad.bytes() + 2 * op.m.bytes() +
                              2 * op.v.bytes() + op.model.bytes())};
}

}  // namespace mixtral::ops
