#include "ops/attention.h"

#include <algorithm>
#include <cmath>

namespace mixtral::ops {
namespace {

using detail::expect_dtype;
using detail::expect_shape;

void check_heads(const Heads& heads) {
  CHECK(heads.query > 0 && heads.kv > 0 && heads.query % heads.kv == 0);
  CHECK(heads.width > 0 && heads.width % 2 == 0);
}

void check_tokens(const Tensor& qkv, const Heads& heads) {
  check_heads(heads);
  expect_shape("qkv", qkv, {-1, heads.columns()});
}

void check_index(std::string_view name, const Tensor& tensor, int64_t count) {
  expect_shape(name, tensor, {count});
  expect_dtype(name, tensor, Dtype::i32);
}

/// Pairs of a query and a key that see each other, at most: causal, one sequence after another.
double visible_pairs(int64_t tokens, int64_t longest, int64_t window) {
  const auto length = static_cast<double>(std::min(tokens, std::max<int64_t>(longest, 1)));
  const double span = window > 0 ? std::min(static_cast<double>(window), length) : length;
  // A token sees (span + 1) / 2 keys on average while the window fills, and span after that.
  const double mean = (span * (span + 1) / 2 + (length - span) * span) / length;
  return static_cast<double>(tokens) * mean;
}

}  // namespace

void check(const Rope& op) {
  check_tokens(op.qkv, op.heads);
  check_index("positions", op.positions, op.qkv.dim(0));
  expect_shape("table", op.table, {-1, 2, op.heads.width / 2});
  expect_dtype("table", op.table, statistics_dtype(op.qkv.dtype()));
}

void check(const Attention& op) {
  check_tokens(op.qkv, op.heads);
  check_index("sequence_starts", op.sequence_starts, -1);
  expect_shape("out", op.out, {op.qkv.dim(0), int64_t{op.heads.query} * op.heads.width});
  if (op.log_sum) {
    expect_shape("log_sum", op.log_sum, {op.qkv.dim(0), op.heads.query});
    expect_dtype("log_sum", op.log_sum, statistics_dtype(op.qkv.dtype()));
  }
  CHECK(op.longest > 0 && op.window >= 0);
}

void check(const AttentionBackward& op) {
  check_tokens(op.qkv, op.heads);
  check_index("sequence_starts", op.sequence_starts, -1);
  expect_shape("out", op.out, {op.qkv.dim(0), int64_t{op.heads.query} * op.heads.width});
  expect_shape("dout", op.dout, op.out.shape());
  expect_shape("dqkv", op.dqkv, op.qkv.shape());
  expect_shape("log_sum", op.log_sum, {op.qkv.dim(0), op.heads.query});
  expect_shape("delta", op.delta, op.log_sum.shape());
  expect_dtype("delta", op.delta, statistics_dtype(op.qkv.dtype()));
  CHECK(op.longest > 0 && op.window >= 0);
}

void check(const CachedAttention& op) {
  check_tokens(op.qkv, op.heads);
  check_index("positions", op.positions, op.qkv.dim(0));
  check_index("rows", op.rows, op.qkv.dim(0));
  check(op.cache, op.heads);
  expect_shape("out", op.out, {op.qkv.dim(0), int64_t{op.heads.query} * op.heads.width});
  CHECK(op.window >= 0 && op.decode_rows >= 0 && op.decode_rows <= op.qkv.dim(0));
}

Cost cost(const Rope& op) {
  const double rotated =
      static_cast<double>(op.qkv.dim(0)) * (op.heads.query + op.heads.kv) * op.heads.width;
  return {3 * rotated, 2 * rotated * static_cast<double>(size_of(op.qkv.dtype()))};
}

Cost cost(const Attention& op) {
  const double pairs = visible_pairs(op.qkv.dim(0), op.longest, op.window);
  return {4 * pairs * op.heads.query * op.heads.width,
          static_cast<double>(op.qkv.bytes() + op.out.bytes())};
}

Cost cost(const AttentionBackward& op) {
  const double pairs = visible_pairs(op.qkv.dim(0), op.longest, op.window);
  return {10 * pairs * op.heads.query * op.heads.width,
          static_cast<double>(2 * op.qkv.bytes() + 2 * op.out.bytes())};
}

Cost cost(const CachedAttention& op) {
  // Where the host does not know how long the sequences are, what the cache can hold is the bound.
  const int64_t tokens = op.qkv.dim(0), held = op.cache.pages() * op.cache.page_tokens();
  int64_t seen = op.seen_keys > 0 ? op.seen_keys : tokens * std::min(op.cache.context(), held);
  if (op.window > 0) seen = std::min(seen, tokens * op.window);
  return {4 * static_cast<double>(seen) * op.heads.query * op.heads.width,
          static_cast<double>(op.cache.keys.bytes() + op.cache.values.bytes())};
}

void fill_rope_table(const Tensor& table, double theta, Dtype frequencies) {
  auto rounded = [&](float frequency) {
    if (frequencies == Dtype::bf16) return static_cast<float>(bf16(frequency));
    if (frequencies == Dtype::f16) return static_cast<float>(f16(frequency));
    return frequency;
  };
  expect_shape("table", table, {-1, 2, -1});
  const int64_t half = table.dim(2);
  auto fill = [&]<class T>(T* out) {
    for (int64_t i = 0; i < half; ++i) {
      const double exponent = 2.0 * static_cast<double>(i) / (2.0 * static_cast<double>(half));
      const float frequency = rounded(static_cast<float>(1.0 / std::pow(theta, exponent)));
      for (int64_t p = 0; p < table.dim(0); ++p) {
        const float angle = static_cast<float>(p) * frequency;
        out[(2 * p) * half + i] = static_cast<T>(std::cos(static_cast<double>(angle)));
        out[(2 * p + 1) * half + i] = static_cast<T>(std::sin(static_cast<double>(angle)));
      }
    }
  };
  if (table.dtype() == Dtype::f64)
    fill(table.as<double>());
  else
    fill(table.as<float>());
}

}  // namespace mixtral::ops
