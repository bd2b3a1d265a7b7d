#include "ops/elementwise.h"

namespace mixtral::ops {

using detail::expect_dtype;
using detail::expect_float;
using detail::expect_shape;

void check(const Fill& op) { CHECK(!op.x.empty()); }
void check(const Convert& op) {
  CHECK(op.x.numel() == op.y.numel() && !op.x.empty() && !op.y.empty());
  CHECK(op.x.dtype() == op.y.dtype() || (is_float(op.x.dtype()) && is_float(op.y.dtype())));
}
void check(const AddScaled& op) {
  CHECK(op.x.numel() == op.y.numel());
  expect_float("x", op.x);
  expect_float("y", op.y);
}
void check(const RandomNormal& op) { expect_float("x", op.x); }
void check(const Dropout& op) {
  expect_shape("y", op.y, op.x.shape());
  expect_float("x", op.x);
  expect_shape("seed", op.seed, {1});
  expect_dtype("seed", op.seed, Dtype::i64);
  CHECK(op.x.dtype() == op.y.dtype() && op.probability >= 0 && op.probability < 1);
}

Cost cost(const Fill& op) { return {0, static_cast<double>(op.x.bytes())}; }
Cost cost(const Convert& op) { return {0, static_cast<double>(op.x.bytes() + op.y.bytes())}; }
Cost cost(const AddScaled& op) {
  return {2 * static_cast<double>(op.x.numel()),
          static_cast<double>(op.x.bytes() + 2 * op.y.bytes())};
}
Cost cost(const RandomNormal& op) { return {0, static_cast<double>(op.x.bytes())}; }
Cost cost(const Dropout& op) { return {0, static_cast<double>(op.x.bytes() + op.y.bytes())}; }

}  // namespace mixtral::ops
