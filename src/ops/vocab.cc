#include "ops/vocab.h"

namespace mixtral::ops {

using detail::expect_dtype;
using detail::expect_float;
using detail::expect_shape;

void check(const Embedding& op) {
  expect_shape("table", op.table, {-1, -1});
  expect_float("table", op.table);
  expect_shape("x", op.x, {-1, op.table.dim(1)});
  expect_shape("tokens", op.tokens, {op.x.dim(0)});
  expect_dtype("tokens", op.tokens, Dtype::i32);
}

void check(const EmbeddingBackward& op) {
  expect_shape("dtable", op.dtable, {-1, -1});
  expect_shape("dx", op.dx, {-1, op.dtable.dim(1)});
  expect_shape("tokens", op.tokens, {op.dx.dim(0)});
  expect_dtype("tokens", op.tokens, Dtype::i32);
  expect_dtype("dtable", op.dtable, statistics_dtype(op.dx.dtype()));
}

void check(const CrossEntropy& op) {
  expect_shape("logits", op.logits, {-1, -1});
  expect_shape("labels", op.labels, {op.logits.dim(0)});
  expect_dtype("labels", op.labels, Dtype::i32);
  expect_shape("loss", op.loss, {op.logits.dim(0)});
  expect_dtype("loss", op.loss, statistics_dtype(op.logits.dtype()));
  CHECK(op.scale.empty() == op.dlogits.empty(), "dlogits goes with scale");
  if (op.scale) {
    expect_dtype("scale", op.scale, op.loss.dtype());
    CHECK(op.scale.numel() == 1 || op.scale.numel() == op.logits.dim(0),
          "scale: one, or one a row");
    expect_shape("dlogits", op.dlogits, op.logits.shape());
    expect_float("dlogits", op.dlogits);
    CHECK(op.dlogits.data() != op.logits.data() || op.dlogits.dtype() == op.logits.dtype(),
          "dlogits in place of logits have their type");
  }
}

void check(const SegmentSum& op) {
  expect_shape("x", op.x, {-1});
  expect_dtype("y", op.y, Dtype::f64);
  expect_shape("y", op.y, {op.starts ? op.starts.dim(0) - 1 : 1});
  if (op.starts) expect_dtype("starts", op.starts, Dtype::i32);
}

void check(const Sample& op) {
  expect_shape("logits", op.logits, {-1, -1});
  CHECK(op.logits.dtype() == Dtype::f32 || op.logits.dtype() == Dtype::f64);
  const int64_t s = op.logits.dim(0);
  expect_shape("settings", op.settings, {s, static_cast<int64_t>(sizeof(SamplingSettings))});
  expect_dtype("settings", op.settings, Dtype::u8);
  if (op.history) expect_shape("history", op.history, {s, -1});
  if (op.allowed) {
    expect_shape("allowed", op.allowed, {s, allowed_words(op.logits.dim(1))});
    expect_dtype("allowed", op.allowed, Dtype::i32);
  }
  if (op.bias) {
    expect_shape("bias", op.bias, op.logits.shape());
    expect_dtype("bias", op.bias, Dtype::f32);
  }
  expect_shape("positions", op.positions, {s});
  expect_shape("tokens", op.tokens, {s});
  if (op.log_probability) {
    expect_shape("log_probability", op.log_probability, {s});
    expect_dtype("log_probability", op.log_probability, op.logits.dtype());
  }
}

void check(const Advance& op) {
  expect_shape("drawn", op.drawn, {-1});
  expect_shape("inputs", op.inputs, op.drawn.shape());
  expect_shape("positions", op.positions, op.drawn.shape());
  if (op.history) expect_shape("history", op.history, {op.drawn.dim(0), -1});
}

Cost cost(const Embedding& op) { return {0, 2 * static_cast<double>(op.x.bytes())}; }
Cost cost(const EmbeddingBackward& op) {
  return {static_cast<double>(op.dx.numel()), 3 * static_cast<double>(op.dx.bytes())};
}
Cost cost(const CrossEntropy& op) {
  return {4 * static_cast<double>(op.logits.numel()),
          static_cast<double>(op.logits.bytes() + op.dlogits.bytes())};
}
Cost cost(const SegmentSum& op) {
  return {static_cast<double>(op.x.numel()), static_cast<double>(op.x.bytes())};
}
Cost cost(const Sample& op) {
  return {4 * static_cast<double>(op.logits.numel()), static_cast<double>(op.logits.bytes())};
}
Cost cost(const Advance& op) { return {0, 4 * static_cast<double>(op.drawn.bytes())}; }

}  // namespace mixtral::ops
