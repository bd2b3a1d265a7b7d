#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <optional>

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
  std::vector<Dtype> dtypes = {Dtype::f64, Dtype::f32, Dtype::bf16};
  bool benchmark = false;
};

void rope(Rig& rig, const Rotation& c) {
  const int64_t half = c.heads.width / 2;
  const Shape shape{c.tokens, c.heads.columns()};
  std::vector<int32_t> positions;
  for (int64_t n = 0; n < c.tokens; ++n)
    positions.push_back(static_cast<int32_t>(rig.random().below(static_cast<uint64_t>(c.longest))));
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

struct Cache {
  std::string name;
  std::vector<int32_t> positions, slots;
  ops::Heads heads;
  int64_t slot_count = 1, capacity = 8;
  std::optional<Dtype> dtype = {};
  int64_t window = 0;
  std::vector<Dtype> dtypes = {Dtype::f64, Dtype::f32, Dtype::bf16};
  bool benchmark = false;

  int64_t tokens() const { return static_cast<int64_t>(positions.size()); }
  Shape shape() const { return {slot_count, capacity, heads.kv, heads.width}; }
};

std::vector<Cache> caches() {
  const std::vector<Dtype> f32{Dtype::f32};
  return {
      {.name = "one", .positions = {0}, .slots = {0}, .heads = {1, 1, 2}, .capacity = 1},
      {.name = "decode",
       .positions = {6, 0, 13},
       .slots = {2, 0, 1},
       .heads = {4, 2, 8},
       .slot_count = 4,
       .capacity = 14},
      {.name = "prefill",
       .positions = {3, 4, 5, 6, 0, 1},
       .slots = {1, 1, 1, 1, 0, 0},
       .heads = {4, 1, 16},
       .slot_count = 2,
       .capacity = 9},
      {.name = "ring",
       .positions = {21, 22, 7, 8, 9},
       .slots = {0, 0, 1, 1, 1},
       .heads = {2, 2, 16},
       .slot_count = 2,
       .capacity = 8,
       .window = 5},
      {.name = "window1",
       .positions = {21, 0},
       .slots = {0, 1},
       .heads = {2, 1, 64},
       .slot_count = 2,
       .capacity = 4,
       .window = 1},
      {.name = "h128_long",
       .positions = {150, 299},
       .slots = {1, 0},
       .heads = {4, 1, 128},
       .slot_count = 2,
       .capacity = 300,
       .dtypes = {Dtype::f32, Dtype::bf16}},
      {.name = "bf16_cache",
       .positions = {6, 40},
       .slots = {0, 1},
       .heads = {4, 2, 16},
       .slot_count = 2,
       .capacity = 48,
       .dtype = Dtype::bf16,
       .dtypes = f32},
      {.name = "f16_cache",
       .positions = {6, 40},
       .slots = {0, 1},
       .heads = {4, 2, 16},
       .slot_count = 2,
       .capacity = 48,
       .dtype = Dtype::f16,
       .dtypes = f32},
      {.name = "seed_2048",
       .positions = {2047},
       .slots = {0},
       .heads = {16, 8, 64},
       .capacity = 2048,
       .dtypes = f32,
       .benchmark = true},
      {.name = "seed_8x512_bf16_cache",
       .positions = {511, 511, 511, 511, 511, 511, 511, 511},
       .slots = {0, 1, 2, 3, 4, 5, 6, 7},
       .heads = {16, 8, 64},
       .slot_count = 8,
       .capacity = 512,
       .dtype = Dtype::bf16,
       .dtypes = f32,
       .benchmark = true},
  };
}

void cache_append(Rig& rig, const Cache& c) {
  const Dtype dtype = c.dtype.value_or(rig.dtype());
  rig.run(ops::CacheAppend{.qkv = rig.input("qkv", {c.tokens(), c.heads.columns()}),
                           .positions = rig.indices("positions", {c.tokens()}, c.positions),
                           .slots = rig.indices("slots", {c.tokens()}, c.slots),
                           .keys = rig.updated("keys", c.shape(), dtype),
                           .values = rig.updated("values", c.shape(), dtype),
                           .heads = c.heads});
}

void cached_attention(Rig& rig, const Cache& c) {
  const Dtype dtype = c.dtype.value_or(rig.dtype());
  rig.set_inner(std::max<int64_t>(c.heads.width, c.capacity));
  rig.run(ops::CachedAttention{
      .qkv = rig.input("qkv", {c.tokens(), c.heads.columns()}),
      .positions = rig.indices("positions", {c.tokens()}, c.positions),
      .slots = rig.indices("slots", {c.tokens()}, c.slots),
      .keys = rig.input("keys", c.shape(), dtype),
      .values = rig.input("values", c.shape(), dtype),
      .out = rig.output("out", {c.tokens(), int64_t{c.heads.query} * c.heads.width}),
      .heads = c.heads,
      .window = c.window,
      .scale = 1 / std::sqrt(static_cast<double>(c.heads.width))});
}

}  // namespace

std::vector<OpCase> attention_cases() {
  std::vector<OpCase> cases;
  for (const Rotation& c : std::vector<Rotation>{
           {.name = "one", .tokens = 1, .heads = {1, 1, 2}},
           {.name = "h8", .tokens = 5, .heads = {4, 2, 8}},
           {.name = "h6", .tokens = 3, .heads = {3, 1, 6}},
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
  for (const Cache& c : caches())
    cases.push_back(
        {"CacheAppend_" + c.name, [=](Rig& rig) { cache_append(rig, c); }, c.dtypes, c.benchmark});
  for (const Cache& c : caches())
    cases.push_back({"CachedAttention_" + c.name, [=](Rig& rig) { cached_attention(rig, c); },
                     c.dtypes, c.benchmark});
  return cases;
}

}  // namespace mixtral::test
