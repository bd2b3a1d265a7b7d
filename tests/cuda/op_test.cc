// The CUDA backend's ops beyond the table's small cases: sizes that cross tiles and take the
// vectorised and tensor-core paths, unaligned addresses, the same bits run after run and from a
// recorded graph. Skipped without a GPU.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "cuda/backend.h"
#include "ref/backend.h"
#include "tests/cuda/gpu_test.h"
#include "tests/op_cases/kv_view.h"

namespace mixtral::test {
namespace {

std::vector<int32_t> ascending(int64_t count, int32_t first = 0) {
  std::vector<int32_t> values(static_cast<size_t>(count));
  std::iota(values.begin(), values.end(), first);
  return values;
}

std::vector<int32_t> random_tokens(Rig& rig, int64_t count, int64_t vocabulary) {
  std::vector<int32_t> tokens;
  for (int64_t n = 0; n < count; ++n)
    tokens.push_back(static_cast<int32_t>(rig.random().below(static_cast<uint64_t>(vocabulary))));
  return tokens;
}

struct Sizes {
  std::vector<int32_t> rows;
  int64_t inputs, outputs, begin = 0, spare = 0;
  bool accumulate = false;
  bool f32_wide = false;  // logits of a router or of the vocabulary
  ops::Operands operands = ops::Operands::exact;

  int64_t total() const { return std::accumulate(rows.begin(), rows.end(), int64_t{0}); }
  int64_t groups() const { return static_cast<int64_t>(rows.size()); }
};

/// Forms: forward, input's gradient, weight's gradient added ('w') or assigned ('a').
void product(Rig& rig, const Sizes& c, char form) {
  const Shape narrow{c.total(), c.inputs}, wide{c.total(), c.begin + c.outputs + c.spare};
  const Shape weight{c.groups(), c.outputs, c.inputs};
  const Dtype wide_dtype = c.f32_wide ? Dtype::f32 : rig.dtype();
  const Spread spread{1 / std::sqrt(static_cast<double>(c.inputs))};
  const Tensor offsets =
      c.groups() == 1 ? Tensor() : rig.indices("offsets", {c.groups() + 1}, offsets_of(c.rows));
  if (form == 'f') {
    rig.set_inner(c.inputs);
    const Tensor x = rig.input("x", narrow), w = rig.input("weight", weight, spread);
    rig.run(ops::GroupedMatmul{.x = x,
                               .weight = w,
                               .offsets = offsets,
                               .y = rig.updated("y", wide, wide_dtype),
                               .y_begin = c.begin,
                               .scale = 0.75,
                               .accumulate = c.accumulate,
                               .operands = c.operands});
  } else if (form == 'i') {
    rig.set_inner(c.outputs);
    const Tensor dy = rig.input("dy", wide, wide_dtype), w = rig.input("weight", weight, spread);
    rig.run(ops::GroupedMatmulInput{.dy = dy,
                                    .weight = w,
                                    .offsets = offsets,
                                    .dx = rig.updated("dx", narrow),
                                    .dy_begin = c.begin,
                                    .scale = 0.75,
                                    .accumulate = c.accumulate,
                                    .operands = c.operands});
  } else {
    rig.set_inner(c.total());
    const Tensor dy = rig.input("dy", wide, wide_dtype), x = rig.input("x", narrow);
    rig.run(ops::GroupedMatmulWeight{.dy = dy,
                                     .x = x,
                                     .offsets = offsets,
                                     .dweight = rig.updated("dweight", weight, rig.statistics()),
                                     .dy_begin = c.begin,
                                     .scale = 0.75,
                                     .accumulate = form == 'w',
                                     .operands = c.operands});
  }
}

struct Packed {
  std::vector<int32_t> lengths;
  ops::Heads heads;
  int64_t window = 0;
};

void attention(Rig& rig, const Packed& c, bool backward) {
  const auto starts = offsets_of(c.lengths);
  const int64_t tokens = starts.back(), width = int64_t{c.heads.query} * c.heads.width;
  ops::Attention op;
  op.heads = c.heads;
  op.window = c.window;
  op.scale = 1 / std::sqrt(static_cast<double>(c.heads.width));
  op.longest = *std::max_element(c.lengths.begin(), c.lengths.end());
  op.qkv = rig.input("qkv", {tokens, c.heads.columns()});
  op.sequence_starts = rig.indices("starts", {static_cast<int64_t>(starts.size())}, starts);
  rig.set_inner(std::max<int64_t>(c.heads.width, op.longest));
  if (!backward) {
    op.out = rig.output("out", {tokens, width});
    op.log_sum = rig.output("log_sum", {tokens, c.heads.query}, rig.statistics());
    rig.run(op);
    return;
  }
  op.out = rig.prepared("out", {tokens, width});
  op.log_sum = rig.prepared("log_sum", {tokens, c.heads.query}, rig.statistics());
  rig.prepare(op);
  rig.run(
      ops::AttentionBackward{.qkv = op.qkv,
                             .sequence_starts = op.sequence_starts,
                             .out = op.out,
                             .log_sum = op.log_sum,
                             .dout = rig.input("dout", op.out.shape()),
                             .dqkv = rig.output("dqkv", op.qkv.shape()),
                             .delta = rig.room("delta", {tokens, c.heads.query}, rig.statistics()),
                             .heads = c.heads,
                             .window = c.window,
                             .scale = op.scale,
                             .longest = op.longest});
}

void embedding_backward(Rig& rig, int64_t tokens, int64_t vocabulary, int64_t width) {
  rig.set_inner(tokens);
  rig.run(ops::EmbeddingBackward{
      .dx = rig.input("dx", {tokens, width}),
      .tokens = rig.indices("tokens", {tokens}, random_tokens(rig, tokens, vocabulary)),
      .dtable = rig.updated("dtable", {vocabulary, width}, rig.statistics())});
}

void rms_norm(Rig& rig, int64_t rows, int64_t width, bool backward) {
  rig.set_inner(std::max(rows, width));
  const Tensor x = rig.input("x", {rows, width});
  const Tensor weight = rig.input("weight", {width}, Spread{0.2, 1});
  ops::RmsNorm op{.x = x, .residual = {}, .weight = weight, .sum = {}, .y = {}, .rstd = {}};
  if (!backward) {
    op.residual = rig.input("residual", {rows, width});
    op.sum = rig.output("sum", {rows, width});
    op.y = rig.output("y", {rows, width});
    op.rstd = rig.output("rstd", {rows}, rig.statistics());
    rig.run(op);
    return;
  }
  op.y = rig.prepared("y", {rows, width});
  op.rstd = rig.prepared("rstd", {rows}, rig.statistics());
  rig.prepare(op);
  rig.run(ops::RmsNormBackward{.dy = rig.input("dy", {rows, width}),
                               .x = x,
                               .weight = weight,
                               .rstd = op.rstd,
                               .dx = rig.updated("dx", {rows, width}),
                               .dweight = rig.updated("dweight", {width}, rig.statistics()),
                               .accumulate = true});
}

void swiglu_backward(Rig& rig, int64_t tokens, int64_t width) {
  const Routing routing = draw_routing(rig.random(), tokens, 8, 2);
  rig.set_inner(width);
  rig.run(ops::SwiGluBackward{
      .gate_up = rig.input("gate_up", {2 * tokens, 2 * width}),
      .weights = rig.input("weights", {tokens, 2}, rig.statistics(), {0.2, 0.5}),
      .source = rig.indices("source", {2 * tokens}, routing.source),
      .dh = rig.input("dh", {2 * tokens, width}),
      .d_gate_up = rig.output("d_gate_up", {2 * tokens, 2 * width}),
      .dweights = rig.output("dweights", {tokens, 2}, rig.statistics())});
}

void product_swiglu(Rig& rig, std::vector<int32_t> rows, int64_t inputs, int64_t width, bool keep) {
  const std::vector<int32_t> offsets = offsets_of(rows);
  const int64_t count = offsets.back(), groups = static_cast<int64_t>(rows.size());
  std::vector<int32_t> source = ascending(count);
  for (size_t r = source.size(); r > 1; --r)
    std::swap(source[r - 1], source[rig.random().below(r)]);
  const Shape wide{count, 2 * width};
  rig.set_inner(inputs);
  rig.run(ops::GroupedMatmulSwiGlu{
      .x = rig.input("x", {count, inputs}),
      .weight = rig.input("weight", {groups, 2 * width, inputs},
                          {1 / std::sqrt(static_cast<double>(inputs))}),
      .offsets = rig.indices("offsets", {groups + 1}, offsets),
      .weights = rig.input("weights", {count, 1}, rig.statistics(), {0.2, 0.5}),
      .source = rig.indices("source", {count}, source),
      .gate_up = keep ? rig.output("gate_up", wide) : rig.room("gate_up", wide),
      .h = rig.output("h", {count, width}),
      .keep_gate_up = keep});
}

void cross_entropy(Rig& rig, int64_t rows, int64_t vocabulary) {
  auto labels = random_tokens(rig, rows, vocabulary);
  labels[1] = ops::kIgnoredLabel;
  rig.set_inner(vocabulary);
  const Tensor logits = rig.updated("logits", {rows, vocabulary}, Spread{3});
  rig.run(ops::CrossEntropy{.logits = logits,
                            .labels = rig.indices("labels", {rows}, labels),
                            .loss = rig.output("loss", {rows}, rig.statistics()),
                            .scale = rig.input("scale", {1}, rig.statistics()),
                            .dlogits = logits});
}

/// f32 logits whose gradient is wanted in the activations' type.
void cross_entropy_rounded(Rig& rig, int64_t rows, int64_t vocabulary) {
  auto labels = random_tokens(rig, rows, vocabulary);
  labels[1] = ops::kIgnoredLabel;
  rig.set_inner(vocabulary);
  rig.run(ops::CrossEntropy{
      .logits = rig.input("logits", {rows, vocabulary}, rig.statistics(), Spread{3}),
      .labels = rig.indices("labels", {rows}, labels),
      .loss = rig.output("loss", {rows}, rig.statistics()),
      .scale = rig.input("scale", {1}, rig.statistics()),
      .dlogits = rig.output("dlogits", {rows, vocabulary})});
}

/// `times` each of many settings.
void sample(Rig& rig, int64_t vocabulary, size_t times) {
  std::vector<ops::SamplingSettings> settings;
  for (int32_t top_k : {0, 1, 40, 5000})
    for (float top_p : {1.0f, 0.9f, 0.3f})
      for (float min_p : {0.0f, 0.05f})
        for (float temperature : {0.0f, 0.8f, 2.0f})
          settings.push_back({.temperature = temperature,
                              .top_k = top_k,
                              .top_p = top_p,
                              .min_p = min_p,
                              .repeat_penalty = top_k == 40 ? 1.2f : 1.0f,
                              .seed = settings.size()});
  const size_t distinct = settings.size();
  while (settings.size() < times * distinct)
    settings.push_back(settings[settings.size() - distinct]);
  const auto count = static_cast<int64_t>(settings.size());
  rig.set_inner(vocabulary);
  rig.run(ops::Sample{
      .logits = rig.input("logits", {count, vocabulary}, rig.statistics(), {3}),
      .settings = rig.bytes("settings", {count, sizeof(ops::SamplingSettings)}, settings.data()),
      .history = rig.indices("history", {count, 64}, random_tokens(rig, count * 64, vocabulary)),
      .positions = rig.indices("positions", {count}, ascending(count, 5)),
      .tokens = rig.output("tokens", {count}, Dtype::i32),
      .log_probability = rig.output("log_probability", {count}, rig.statistics())});
}

void adamw(Rig& rig, int64_t count, Dtype state) {
  const Tensor value = rig.updated("value", {count}, Dtype::f32);
  rig.run(ops::AdamW{.value = value,
                     .grad = rig.input("grad", {count}, Dtype::f32, {0.1}),
                     .m = rig.updated("m", {count}, state, Spread{0.01}),
                     .v = rig.updated("v", {count}, state, Spread{1e-5, 1e-3}),
                     .model = rig.output("model", {count}, Dtype::bf16),
                     .schedule = rig.values("schedule", {4}, Dtype::f64,
                                            {1e-3, 1 - std::pow(0.9, 7), 1 - std::pow(0.95, 7), 7}),
                     .squared_norm = rig.values("squared_norm", {1}, Dtype::f64, {9.0}),
                     .weight_decay = 0.1,
                     .clip = 1,
                     .seed = 5});
}

std::vector<OpCase> large_cases() {
  const std::vector<Dtype> both{Dtype::f32, Dtype::bf16}, f32{Dtype::f32}, bf16{Dtype::bf16};
  std::vector<OpCase> cases;
  const auto add = [&](std::string name, std::vector<Dtype> dtypes,
                       std::function<void(Rig&)> build) {
    cases.push_back({std::move(name), std::move(build), std::move(dtypes)});
  };
  const auto add_products = [&](const std::string& name, std::vector<Dtype> dtypes,
                                const Sizes& c) {
    for (char form : {'f', 'i', 'w', 'a'})
      add(fmt::format("Product_{}_{}", name, form), dtypes,
          [=](Rig& rig) { product(rig, c, form); });
  };
  add_products("dense", both, {.rows = {200}, .inputs = 256, .outputs = 384});
  add_products("dense_accumulated", both,
               {.rows = {130}, .inputs = 136, .outputs = 72, .accumulate = true});
  add_products(
      "columns", both,
      {.rows = {96}, .inputs = 64, .outputs = 128, .begin = 64, .spare = 32, .accumulate = true});
  add_products("grouped", both,
               {.rows = {70, 0, 1, 200, 33, 0, 128, 5}, .inputs = 128, .outputs = 256});
  add_products(
      "grouped_columns", both,
      {.rows = {70, 0, 1, 200}, .inputs = 64, .outputs = 128, .begin = 128, .accumulate = true});
  add_products("grouped_deep", both, {.rows = {300, 0, 40}, .inputs = 520, .outputs = 136});
  add_products("grouped_odd", both, {.rows = {70, 0, 1, 200}, .inputs = 67, .outputs = 131});
  // Tiles of 128 x 256 that lie above each other, beside each other, and alone; whole and not.
  for (const bool accumulate : {false, true}) {
    const std::string suffix = accumulate ? "_accumulated" : "";
    add_products(
        "grouped_tiles" + suffix, bf16,
        {.rows = {300, 0, 513, 64, 128}, .inputs = 200, .outputs = 520, .accumulate = accumulate});
    add_products("grouped_few_outputs" + suffix, bf16,
                 {.rows = {70, 0, 1, 300}, .inputs = 264, .outputs = 16, .accumulate = accumulate});
    add_products("grouped_few_inputs" + suffix, bf16,
                 {.rows = {70, 0, 1, 300}, .inputs = 16, .outputs = 264, .accumulate = accumulate});
  }
  // As low-rank updates have them; the second has rows enough to be divided into parts.
  for (const bool accumulate : {false, true})
    for (const int32_t rows : {300, 2100}) {
      const std::string suffix = fmt::format("_{}{}", rows, accumulate ? "_accumulated" : "");
      add_products("adapter_a" + suffix, bf16,
                   {.rows = {rows}, .inputs = 264, .outputs = 16, .accumulate = accumulate});
      add_products("adapter_b" + suffix, bf16,
                   {.rows = {rows}, .inputs = 16, .outputs = 264, .accumulate = accumulate});
    }
  for (const bool keep : {true, false}) {
    const std::string suffix = keep ? "" : "_alone";
    add("GroupedMatmulSwiGlu_tiles" + suffix, bf16,
        [=](Rig& rig) { product_swiglu(rig, {300, 0, 513, 64, 128}, 136, 200, keep); });
    add("GroupedMatmulSwiGlu_small" + suffix, both,
        [=](Rig& rig) { product_swiglu(rig, {3, 0, 17, 1}, 64, 128, keep); });
  }
  add_products("router", both,
               {.rows = {300}, .inputs = 512, .outputs = 8, .accumulate = true, .f32_wide = true});
  add_products("router_e13", both, {.rows = {77}, .inputs = 200, .outputs = 13, .f32_wide = true});
  add_products("router_e64", bf16, {.rows = {77}, .inputs = 200, .outputs = 64, .f32_wide = true});
  add_products("rounded", both,
               {.rows = {150},
                .inputs = 128,
                .outputs = 200,
                .f32_wide = true,
                .operands = ops::Operands::bf16});
  add_products("grouped_rounded", both,
               {.rows = {70, 0, 1, 200},
                .inputs = 128,
                .outputs = 64,
                .f32_wide = true,
                .operands = ops::Operands::bf16});
  const auto add_attention = [&](const std::string& name, std::vector<Dtype> dtypes,
                                 const Packed& c) {
    add("Attention_" + name, dtypes, [=](Rig& rig) { attention(rig, c, false); });
    add("AttentionBackward_" + name, dtypes, [=](Rig& rig) { attention(rig, c, true); });
  };
  add_attention("uniform", both, {.lengths = {192, 192}, .heads = {4, 2, 64}});
  add_attention("uniform_h128", both, {.lengths = {128, 128}, .heads = {4, 1, 128}});
  add_attention("uniform_window", both, {.lengths = {256}, .heads = {2, 1, 64}, .window = 100});
  add_attention("ragged", both, {.lengths = {77, 1, 200, 64}, .heads = {4, 2, 64}});
  add_attention("ragged_h128", both, {.lengths = {130, 3, 61}, .heads = {4, 4, 128}});
  add_attention("ragged_window", both,
                {.lengths = {150, 20, 99}, .heads = {2, 1, 128}, .window = 33});
  add_attention("h96", both, {.lengths = {70, 30}, .heads = {2, 1, 96}});
  add_attention("h256", both, {.lengths = {70, 30}, .heads = {2, 1, 256}});
  add_attention("h10", both, {.lengths = {70, 30}, .heads = {2, 1, 10}});
  for (const int64_t size : {16, 64}) {
    const auto add_cached = [&](const std::string& name, CacheCase c) {
      c.page_tokens = size;
      add(fmt::format("CachedAttention_{}_pages_of_{}", name, size), both,
          [=](Rig& rig) { cached_attention(rig, c); });
    };
    add_cached("decode_h128", {.runs = {{0, 700, 1}, {2, 3, 1}, {kPaddingRun}, {1, 511, 1}},
                               .heads = {8, 2, 128},
                               .decode_rows = 4});
    add_cached("decode_no_groups", {.runs = {{0, 300, 1}}, .heads = {4, 4, 64}, .decode_rows = 1});
    add_cached("decode_group_of_9",
               {.runs = {{0, 300, 1}, {1, 30, 1}}, .heads = {18, 2, 64}, .decode_rows = 2});
    add_cached("decode_window", {.runs = {{0, 900, 1}, {1, 30, 1}},
                                 .heads = {8, 2, 128},
                                 .decode_rows = 2,
                                 .window = 300,
                                 .released = true});
    add_cached("decode_h256", {.runs = {{0, 200, 1}}, .heads = {4, 1, 256}, .decode_rows = 1});
    add_cached("decode_h10", {.runs = {{0, 200, 1}}, .heads = {4, 1, 10}, .decode_rows = 1});
    add_cached("prefill", {.runs = {{1, 0, 150}}, .heads = {4, 2, 64}});
    add_cached("prefill_behind_decode", {.runs = {{0, 90, 1},
                                                  {4, 91, 1},
                                                  {kPaddingRun, 0, 6},
                                                  {1, 10, 60},
                                                  {2, 5, 3},
                                                  {3, 40, 90},
                                                  {kPaddingRun, 0, 30}},
                                         .heads = {8, 2, 128},
                                         .decode_rows = 8});
    add_cached("prefill_shared",
               {.runs = {{0, 129, 40}, {1, 128, 90}}, .heads = {8, 2, 128}, .shared_pages = 2});
    add_cached("prefill_window", {.runs = {{0, 300, 40}, {kPaddingRun, 0, 8}, {1, 290, 100}},
                                  .heads = {4, 1, 64},
                                  .window = 33,
                                  .released = true});
    add_cached("prefill_h256", {.runs = {{0, 3, 70}}, .heads = {2, 1, 256}});
    for (const auto type :
         {ops::CacheType::bf16, ops::CacheType::f16, ops::CacheType::int8, ops::CacheType::fp8}) {
      const auto add_typed = [&](const std::string& name, CacheCase c) {
        c.type = type;
        add_cached(fmt::format("{}_{}_cache", name, to_string(type)), c);
      };
      add_typed("decode_8x7b", {.runs = {{0, 1100, 1}, {2, 3, 1}, {kPaddingRun}, {1, 511, 1}},
                                .heads = {32, 8, 128},
                                .decode_rows = 4});
      add_typed("decode_one", {.runs = {{0, 777, 1}}, .heads = {8, 2, 64}, .decode_rows = 1});
      add_typed("decode_group_of_9",
                {.runs = {{0, 300, 1}, {1, 30, 1}}, .heads = {18, 2, 96}, .decode_rows = 2});
      add_typed("decode_window", {.runs = {{0, 900, 1}, {1, 30, 1}},
                                  .heads = {8, 2, 128},
                                  .decode_rows = 2,
                                  .window = 300,
                                  .released = true});
      add_typed("prefill_behind_decode", {.runs = {{0, 90, 1},
                                                   {kPaddingRun, 0, 3},
                                                   {1, 200, 150},
                                                   {3, 40, 90},
                                                   {kPaddingRun, 0, 30}},
                                          .heads = {8, 2, 128},
                                          .decode_rows = 4});
      add_typed("prefill_window", {.runs = {{0, 300, 40}, {kPaddingRun, 0, 8}, {1, 290, 100}},
                                   .heads = {4, 1, 64},
                                   .window = 33,
                                   .released = true});
    }
    add_cached("prefill_f16_cache",
               {.runs = {{0, 3, 70}}, .heads = {4, 2, 64}, .type = ops::CacheType::f16});
    add_cached(
        "decode_f16_cache",
        {.runs = {{0, 300}}, .heads = {4, 2, 64}, .decode_rows = 1, .type = ops::CacheType::f16});
  }
  for (const auto type : {ops::CacheType::int8, ops::CacheType::fp8})
    add(fmt::format("CacheAppend_8x7b_{}", to_string(type)), both, [=](Rig& rig) {
      cache_append(rig, {.runs = {{0, 130, 1}, {kPaddingRun}, {1, 60, 9}},
                         .heads = {32, 8, 128},
                         .page_tokens = 64,
                         .type = type});
    });
  add("EmbeddingBackward_few_tokens", both, [](Rig& rig) { embedding_backward(rig, 1000, 3, 64); });
  add("EmbeddingBackward_many_tokens", both,
      [](Rig& rig) { embedding_backward(rig, 1000, 300, 40); });
  add("RmsNorm_d4096", both, [](Rig& rig) { rms_norm(rig, 20, 4096, false); });
  add("RmsNorm_d14336", both, [](Rig& rig) { rms_norm(rig, 3, 14336, false); });
  add("RmsNormBackward_d1024", both, [](Rig& rig) { rms_norm(rig, 700, 1024, true); });
  add("RmsNormBackward_d8192", both, [](Rig& rig) { rms_norm(rig, 3, 8192, true); });
  add("SwiGluBackward_f4096", both, [](Rig& rig) { swiglu_backward(rig, 9, 4096); });
  add("CrossEntropy_v32000", both, [](Rig& rig) { cross_entropy(rig, 4, 32000); });
  for (const int64_t vocabulary : {32000, 1001})
    add(fmt::format("CrossEntropy_rounded_v{}", vocabulary), bf16,
        [=](Rig& rig) { cross_entropy_rounded(rig, 4, vocabulary); });
  add("Sample_v32000", f32, [](Rig& rig) { sample(rig, 32000, 1); });
  add("Sample_many_rows", f32, [](Rig& rig) { sample(rig, 1000, 10); });
  add("AdamW_f32_state", f32, [](Rig& rig) { adamw(rig, 10007, Dtype::f32); });
  add("AdamW_bf16_state", f32, [](Rig& rig) { adamw(rig, 10007, Dtype::bf16); });
  return cases;
}

struct Parameter {
  OpCase op;
  Dtype dtype;
};

void PrintTo(const Parameter& parameter, std::ostream* out) { *out << parameter.op.name; }

std::vector<Parameter> parameters(const std::vector<OpCase>& cases) {
  std::vector<Parameter> all;
  for (const OpCase& op : cases)
    for (Dtype dtype : op.dtypes)
      if (!op.benchmark && dtype != Dtype::f64) all.push_back({op, dtype});
  return all;
}

std::string name_of(const testing::TestParamInfo<Parameter>& info) {
  return fmt::format("{}_{}", info.param.op.name, to_string(info.param.dtype));
}

class Cuda : public GpuTest<Parameter> {};
class CudaLarge : public Cuda {};

TEST_P(CudaLarge, EqualsReference) {
  const auto& [op, dtype] = GetParam();
  if (!gpu().has_format(op.format)) GTEST_SKIP() << "not a format of this backend";
  SCOPED_TRACE(fmt::format("MIXTRAL_TEST_SEED={}", test_seed()));
  ref::RefBackend ref;
  Rig expected(ref, dtype, test_seed());
  op.build(expected);
  expected.execute();
  Rig tested(gpu(), expected);
  op.build(tested);
  tested.execute();
  EXPECT_EQ(difference(expected, tested), "");
}

/// Addresses that are aligned to an element only take other code paths.
TEST_P(Cuda, EqualsReferenceAtUnalignedAddresses) {
  const auto& [op, dtype] = GetParam();
  if (!gpu().has_format(op.format)) GTEST_SKIP() << "not a format of this backend";
  SCOPED_TRACE(fmt::format("MIXTRAL_TEST_SEED={}", test_seed()));
  ref::RefBackend ref;
  Rig expected(ref, dtype, test_seed());
  op.build(expected);
  expected.execute();
  Rig tested(gpu(), expected, 1);
  op.build(tested);
  tested.execute();
  EXPECT_EQ(difference(expected, tested), "");
}

TEST_P(Cuda, SameBitsAgainAndFromARecording) {
  const auto& [op, dtype] = GetParam();
  if (!gpu().has_format(op.format)) GTEST_SKIP() << "not a format of this backend";
  expect_same_bits_again(gpu(), dtype, op.build);
}

INSTANTIATE_TEST_SUITE_P(Table, Cuda, testing::ValuesIn(parameters(op_cases())), name_of);
INSTANTIATE_TEST_SUITE_P(Large, Cuda, testing::ValuesIn(parameters(large_cases())), name_of);
INSTANTIATE_TEST_SUITE_P(Large, CudaLarge, testing::ValuesIn(parameters(large_cases())), name_of);

}  // namespace
}  // namespace mixtral::test
