#include "ops/moe.h"

namespace mixtral::ops {
namespace {

using detail::expect_dtype;
using detail::expect_index;
using detail::expect_shape;

void check_rows(const Tensor& gate_up, const Tensor& weights, const Tensor& source,
                const Tensor& h) {
  expect_shape("h", h, {-1, -1});
  expect_shape("gate_up", gate_up, {h.dim(0), 2 * h.dim(1)});
  expect_shape("weights", weights, {-1, -1});
  CHECK(weights.numel() == h.dim(0), "a weight a row");
  expect_dtype("weights", weights, statistics_dtype(h.dtype()));
  expect_index("source", source, {h.dim(0)});
}

void check_positions(const Tensor& positions, const Tensor& logits) {
  if (positions) expect_index("positions", positions, {logits.dim(0)});
}

double bytes(std::initializer_list<Tensor> tensors) {
  double sum = 0;
  for (const Tensor& tensor : tensors) sum += static_cast<double>(tensor.bytes());
  return sum;
}

}  // namespace

void check(const Route& op) {
  expect_shape("logits", op.logits, {-1, -1});
  const int64_t n = op.logits.dim(0);
  check_positions(op.positions, op.logits);
  expect_shape("weights", op.weights, {n, -1});
  const int64_t k = op.weights.dim(1);
  CHECK(k >= 1 && k <= op.logits.dim(1), "top-k out of range");
  expect_dtype("weights", op.weights, op.logits.dtype());
  expect_index("expert", op.expert, {n, k});
  expect_index("slot", op.slot, {n, k});
  expect_index("source", op.source, {n * k});
  expect_index("offsets", op.offsets, {op.logits.dim(1) + 1});
}

void check(const RouteBackward& op) {
  expect_shape("logits", op.logits, {-1, -1});
  expect_shape("weights", op.weights, {op.logits.dim(0), -1});
  expect_index("expert", op.expert, op.weights.shape());
  expect_shape("dweights", op.dweights, op.weights.shape());
  expect_dtype("dweights", op.dweights, op.logits.dtype());
  expect_shape("dlogits", op.dlogits, op.logits.shape());
  expect_dtype("dlogits", op.dlogits, op.logits.dtype());
  if (op.dprobability) expect_shape("dprobability", op.dprobability, {op.logits.dim(1)});
}

void check(const RouterStatistics& op) {
  expect_shape("logits", op.logits, {-1, -1});
  check_positions(op.positions, op.logits);
  expect_index("offsets", op.offsets, {op.logits.dim(1) + 1});
  expect_shape("load", op.load, {op.logits.dim(1)});
  expect_shape("importance", op.importance, {op.logits.dim(1)});
  expect_shape("z", op.z, {1});
  expect_shape("entropy", op.entropy, {1});
  expect_dtype("load", op.load, op.logits.dtype());
}

void check(const BalanceLoss& op) {
  expect_shape("load", op.load, {-1, -1});
  expect_shape("importance", op.importance, op.load.shape());
  expect_shape("z", op.z, {op.load.dim(0)});
  expect_shape("losses", op.losses, {2});
  if (op.dprobability) expect_shape("dprobability", op.dprobability, op.load.shape());
  CHECK(op.tokens > 0);
}

void check(const GatherRows& op) {
  expect_shape("x", op.x, {-1, -1});
  expect_shape("y", op.y, {-1, op.x.dim(1)});
  expect_index("source", op.source, {op.y.dim(0)});
  expect_dtype("y", op.y, op.x.dtype());
  CHECK(op.divisor >= 1 && op.x.dim(0) * op.divisor == op.y.dim(0));
}

void check(const CombineRows& op) {
  expect_shape("y", op.y, {-1, -1});
  expect_shape("slot", op.slot, {-1, -1});
  expect_index("slot", op.slot, op.slot.shape());
  CHECK(op.slot.numel() == op.y.dim(0));
  expect_shape("out", op.out, {op.slot.dim(0), op.y.dim(1)});
  if (op.residual) expect_shape("residual", op.residual, op.out.shape());
}

void check(const SwiGlu& op) { check_rows(op.gate_up, op.weights, op.source, op.h); }

void check(const SwiGluBackward& op) {
  check_rows(op.gate_up, op.weights, op.source, op.dh);
  expect_shape("d_gate_up", op.d_gate_up, op.gate_up.shape());
  expect_shape("dweights", op.dweights, op.weights.shape());
  if (op.h) expect_shape("h", op.h, op.dh.shape());
}

GroupedMatmul GroupedMatmulSwiGlu::product() const {
  return {.x = x, .weight = weight, .offsets = offsets, .y = gate_up, .operands = operands};
}

SwiGlu GroupedMatmulSwiGlu::activation() const {
  return {.gate_up = gate_up, .weights = weights, .source = source, .h = h};
}

void check(const GroupedMatmulSwiGlu& op) {
  check(op.product());
  check(op.activation());
}

Cost cost(const Route& op) {
  return {5 * static_cast<double>(op.logits.numel()),
          bytes({op.logits, op.weights, op.expert, op.slot, op.source, op.offsets})};
}
Cost cost(const RouteBackward& op) {
  return {8 * static_cast<double>(op.logits.numel()),
          bytes({op.logits, op.weights, op.expert, op.dweights, op.dlogits})};
}
Cost cost(const RouterStatistics& op) {
  return {6 * static_cast<double>(op.logits.numel()), bytes({op.logits})};
}
Cost cost(const BalanceLoss& op) {
  return {4 * static_cast<double>(op.load.numel()), bytes({op.load, op.importance})};
}
Cost cost(const GatherRows& op) { return {0, bytes({op.y, op.y, op.source})}; }
Cost cost(const CombineRows& op) {
  return {static_cast<double>(op.y.numel()), bytes({op.y, op.slot, op.residual, op.out})};
}
Cost cost(const SwiGlu& op) {
  return {6 * static_cast<double>(op.h.numel()), bytes({op.gate_up, op.h})};
}
Cost cost(const SwiGluBackward& op) {
  return {14 * static_cast<double>(op.dh.numel()), bytes({op.gate_up, op.dh, op.d_gate_up, op.h})};
}
Cost cost(const GroupedMatmulSwiGlu& op) {
  Cost c = cost(op.product());
  if (!op.keep_gate_up) c.bytes -= static_cast<double>(op.gate_up.bytes());
  c.flops += cost(op.activation()).flops;
  c.bytes += static_cast<double>(op.h.bytes());
  return c;
}

}  // namespace mixtral::ops
