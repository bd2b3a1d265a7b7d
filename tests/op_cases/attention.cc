#include "ops/attention.h"

#include <algorithm>
#include <cmath>

#include "tests/op_cases.h"

namespace mixtral::test {
namespace {

struct Sequences {
  std::string name;
  std::vector<int32_t> lengths;
  ops::Heads heads;
  int64_t window = 0;
  double scale = 0;   // 0: 1 / sqrt(h)
  int64_t spare = 0;  // how far `longest` exceeds the longest
  bool log_sum = true;
  double deviation = 1;
  std::vector<Dtype> dtypes = {Dtype::f64, Dtype::f32, Dtype::bf16};
  bool benchmark = false;
};

std::vector<Sequences> sequences() {
  const std::vector<Dtype> narrow{Dtype::f32, Dtype::bf16};
  return {
      {.name = "one", .lengths = {1}, .heads = {1, 1, 2}},
      {.name = "ones", .lengths = {1, 1, 1}, .heads = {2, 1, 8}},
      {.name = "h2", .lengths = {5}, .heads = {2, 2, 2}},
      {.name = "several_h8", .lengths = {3, 1, 6}, .heads = {4, 4, 8}},
      {.name = "shared_h16", .lengths = {4, 7}, .heads = {4, 2, 16}},
      {.name = "one_kv_h64", .lengths = {9, 2}, .heads = {4, 1, 64}},
      {.name = "h128", .lengths = {17, 1, 16}, .heads = {2, 2, 128}, .dtypes = narrow},
      {.name = "window1", .lengths = {7, 2}, .heads = {2, 1, 16}, .window = 1},
      {.name = "window3", .lengths = {9, 1, 4}, .heads = {4, 2, 8}, .window = 3},
      {.name = "window_large", .lengths = {9, 1}, .heads = {2, 2, 8}, .window = 1000},
      {.name = "scaled", .lengths = {6, 5}, .heads = {2, 1, 8}, .scale = 0.1},
      {.name = "bound", .lengths = {6, 5}, .heads = {2, 1, 8}, .spare = 90},
      {.name = "no_log_sum", .lengths = {6, 5}, .heads = {2, 1, 8}, .log_sum = false},
      {.name = "sharp",
       .lengths = {24},
       .heads = {2, 1, 16},
       .deviation = 4,
       .dtypes = {Dtype::f32}},
      {.name = "blocks", .lengths = {33, 70, 131}, .heads = {4, 2, 32}, .dtypes = narrow},
      {.name = "blocks_window",
       .lengths = {130, 65},
       .heads = {2, 1, 64},
       .window = 37,
       .dtypes = narrow},
      {.name = "tiny",
       .lengths = {64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64},
       .heads = {4, 2, 32},
       .dtypes = {Dtype::f32},
       .benchmark = true},
      {.name = "seed_1024",
       .lengths = {1024},
       .heads = {16, 8, 64},
       .dtypes = narrow,
       .benchmark = true},
      {.name = "seed_8192_window",
       .lengths = {8192},
       .heads = {4, 2, 64},
       .window = 1024,
       .dtypes = {Dtype::f32},
       .benchmark = true},
  };
}

ops::Attention make_attention(Rig& rig, const Sequences& c) {
  const auto starts = offsets_of(c.lengths);
  const int64_t tokens = starts.back();
  ops::Attention op;
  op.heads = c.heads;
  op.window = c.window;
  op.scale = c.scale != 0 ? c.scale : 1 / std::sqrt(static_cast<double>(c.heads.width));
  op.longest = *std::max_element(c.lengths.begin(), c.lengths.end()) + c.spare;
  op.qkv = rig.input("qkv", {tokens, c.heads.columns()}, {c.deviation});
  op.sequence_starts =
      rig.indices("sequence_starts", {static_cast<int64_t>(starts.size())}, starts);
  // Scores that are large lose their last bits before the exponential.
  rig.set_inner(c.deviation > 1 ? 1 << 16 : std::max<int64_t>(c.heads.width, op.longest));
  rig.set_magnitude(0.1);  // log_sum may pass through zero
  return op;
}

void attention(Rig& rig, const Sequences& c) {
  ops::Attention op = make_attention(rig, c);
  const int64_t tokens = op.qkv.dim(0);
  op.out = rig.output("out", {tokens, int64_t{c.heads.query} * c.heads.width});
  if (c.log_sum) op.log_sum = rig.output("log_sum", {tokens, c.heads.query}, rig.statistics());
  rig.run(op);
}

void attention_backward(Rig& rig, const Sequences& c) {
  ops::Attention forward = make_attention(rig, c);
  const int64_t tokens = forward.qkv.dim(0);
  forward.out = rig.prepared("out", {tokens, int64_t{c.heads.query} * c.heads.width});
  forward.log_sum = rig.prepared("log_sum", {tokens, c.heads.query}, rig.statistics());
  rig.prepare(forward);
  const ops::AttentionBackward op{
      .qkv = forward.qkv,
      .sequence_starts = forward.sequence_starts,
      .out = forward.out,
      .log_sum = forward.log_sum,
      .dout = rig.input("dout", forward.out.shape()),
      .dqkv = rig.output("dqkv", forward.qkv.shape()),
      .delta = rig.room("delta", forward.log_sum.shape(), rig.statistics()),
      .heads = c.heads,
      .window = forward.window,
      .scale = forward.scale,
      .longest = forward.longest};
  rig.loss(forward.out, op.dout);
  rig.gradient(op.qkv, op.dqkv);
  rig.run(op);
}

/// A table of Rope for these many positions, in f64.
std::vector<double> rope_table(int64_t positions, int64_t half, double theta) {
  std::vector<double> table(static_cast<size_t>(positions * 2 * half));
  ops::fill_rope_table(Tensor(table.data(), {positions, 2, half}, Dtype::f64), theta);
  return table;
}

struct Rotation {
  std::string name;
  int64_t tokens = 1;
  ops::Heads heads;
  bool inverse = false;
  double theta = 1e4;
  int64_t longest = 40;
  std::vector<int64_t> padding = {};  // tokens that are padding
  std::vector<Dtype> dtypes = {Dtype::f64, Dtype::f32, Dtype::bf16};
  bool benchmark = false;
};

void rope(Rig& rig, const Rotation& c) {
  const int64_t half = c.heads.width / 2;
  const Shape shape{c.tokens, c.heads.columns()};
  std::vector<int32_t> positions;
  for (int64_t n = 0; n < c.tokens; ++n)
    positions.push_back(static_cast<int32_t>(rig.random().below(static_cast<uint64_t>(c.longest))));
  for (int64_t n : c.padding) positions[static_cast<size_t>(n)] = ops::kPadding;
  ops::Rope op;
  op.heads = c.heads;
  op.positions = rig.indices("positions", {c.tokens}, positions);
  op.table = rig.values("table", {c.longest, 2, half}, rig.statistics(),
                        rope_table(c.longest, half, c.theta));
  if (c.inverse) {  // the gradient of a rotation that worked on a copy of x
    const Tensor x = rig.input("x", shape), rotated = rig.prepared("rotated", shape);
    rig.prepare(ops::Convert{x, rotated});
    op.qkv = rotated;
    rig.prepare(op);
    op.inverse = true;
    op.qkv = rig.updated("dqkv", shape);
    rig.loss(rotated, op.qkv);
    rig.gradient(x, op.qkv);
  } else {
    op.qkv = rig.updated("qkv", shape);
  }
  rig.run(op);
}

}  // namespace

std::vector<OpCase> attention_cases() {
  std::vector<OpCase> cases;
  for (const Rotation& c : std::vector<Rotation>{
           {.name = "one", .tokens = 1, .heads = {1, 1, 2}},
           {.name = "h8", .tokens = 5, .heads = {4, 2, 8}},
           {.name = "h6", .tokens = 3, .heads = {3, 1, 6}},
           {.name = "padding", .tokens = 5, .heads = {4, 2, 8}, .padding = {1, 3, 4}},
           {.name = "h128", .tokens = 4, .heads = {2, 1, 128}, .theta = 1e6},
           {.name = "inverse", .tokens = 5, .heads = {4, 2, 8}, .inverse = true},
           {.name = "inverse_h64", .tokens = 2, .heads = {2, 2, 64}, .inverse = true},
           {.name = "seed",
            .tokens = 512,
            .heads = {16, 8, 64},
            .longest = 512,
            .dtypes = {Dtype::f32},
            .benchmark = true}})
    cases.push_back({"Rope_" + c.name, [=](Rig& rig) { rope(rig, c); }, c.dtypes, c.benchmark});
  for (const Sequences& c : sequences())
    cases.push_back(
        {"Attention_" + c.name, [=](Rig& rig) { attention(rig, c); }, c.dtypes, c.benchmark});
  for (const Sequences& c : sequences()) {
    if (c.log_sum)
      cases.push_back({"AttentionBackward_" + c.name, [=](Rig& rig) { attention_backward(rig, c); },
                       c.dtypes, c.benchmark});
  }
  return cases;
}

}  // namespace mixtral::test
