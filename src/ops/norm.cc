#include "ops/norm.h"

namespace mixtral::ops {

using detail::expect_dtype;
using detail::expect_shape;

void check(const RmsNorm& op) {
  expect_shape("x", op.x, {-1, -1});
  expect_shape("weight", op.weight, {op.x.dim(1)});
  expect_shape("y", op.y, op.x.shape());
  CHECK(op.residual.empty() == op.sum.empty(), "sum goes with residual");
  if (op.residual) {
    expect_shape("residual", op.residual, op.x.shape());
    expect_shape("sum", op.sum, op.x.shape());
  }
  if (op.rstd) {
    expect_shape("rstd", op.rstd, {op.x.dim(0)});
    expect_dtype("rstd", op.rstd, statistics_dtype(op.x.dtype()));
  }
}

void check(const RmsNormBackward& op) {
  expect_shape("x", op.x, {-1, -1});
  expect_shape("dy", op.dy, op.x.shape());
  expect_shape("dx", op.dx, op.x.shape());
  expect_shape("weight", op.weight, {op.x.dim(1)});
  expect_shape("rstd", op.rstd, {op.x.dim(0)});
  CHECK(op.dx.data() != op.dy.data(), "dx may not alias dy");
  if (op.dweight) {
    expect_shape("dweight", op.dweight, {op.x.dim(1)});
    expect_dtype("dweight", op.dweight, statistics_dtype(op.x.dtype()));
  }
}

Cost cost(const RmsNorm& op) {
  return {4 * static_cast<double>(op.x.numel()),
          static_cast<double>(op.x.bytes() + op.residual.bytes() + op.sum.bytes() + op.y.bytes())};
}
Cost cost(const RmsNormBackward& op) {
  return {
      8 * static_cast<double>(op.x.numel()),
      static_cast<double>(op.x.bytes() + op.dy.bytes() + op.dx.bytes() * (op.accumulate ? 2 : 1))};
}

}  // namespace mixtral::ops
