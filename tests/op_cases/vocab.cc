#include "ops/vocab.h"

#include <optional>

#include "tests/op_cases.h"

namespace mixtral::test {
namespace {

std::vector<int32_t> draw_tokens(Rig& rig, int64_t count, int64_t vocabulary) {
  std::vector<int32_t> tokens;
  for (int64_t n = 0; n < count; ++n)
    tokens.push_back(static_cast<int32_t>(rig.random().below(static_cast<uint64_t>(vocabulary))));
  return tokens;
}

struct Lookup {
  std::string name;
  int64_t tokens = 1, vocabulary = 1, width = 1;
  std::optional<Dtype> table = {};
  std::vector<Dtype> dtypes = {Dtype::f64, Dtype::f32, Dtype::bf16};
  bool benchmark = false;
};

void embedding(Rig& rig, const Lookup& c) {
  rig.run(ops::Embedding{
      .table = rig.input("table", {c.vocabulary, c.width}, c.table.value_or(rig.dtype())),
      .tokens = rig.indices("tokens", {c.tokens}, draw_tokens(rig, c.tokens, c.vocabulary)),
      .x = rig.output("x", {c.tokens, c.width})});
}

void embedding_backward(Rig& rig, const Lookup& c) {
  const ops::Embedding forward{
      .table = rig.input("table", {c.vocabulary, c.width}),
      .tokens = rig.indices("tokens", {c.tokens}, draw_tokens(rig, c.tokens, c.vocabulary)),
      .x = rig.prepared("x", {c.tokens, c.width})};
  rig.prepare(forward);
  const ops::EmbeddingBackward op{
      .dx = rig.input("dx", forward.x.shape()),
      .tokens = forward.tokens,
      .dtable = rig.updated("dtable", forward.table.shape(), rig.statistics())};
  rig.loss(forward.x, op.dx);
  rig.gradient(forward.table, op.dtable, true);
  rig.set_inner(c.tokens);
  rig.run(op);
}

enum class Scale { none, one, each };

struct Loss {
  std::string name;
  int64_t rows = 1, vocabulary = 1;
  Scale scale = Scale::one;
  bool in_place = false;
  std::vector<int32_t> ignored = {};  // rows whose label is ignored
  double deviation = 2;
  std::vector<Dtype> dtypes = {Dtype::f64, Dtype::f32, Dtype::bf16};
  bool benchmark = false;
};

void cross_entropy(Rig& rig, const Loss& c) {
  const Shape shape{c.rows, c.vocabulary};
  std::vector<int32_t> labels = draw_tokens(rig, c.rows, c.vocabulary);
  for (int32_t n : c.ignored) labels[static_cast<size_t>(n)] = ops::kIgnoredLabel;
  ops::CrossEntropy op;
  op.logits = c.in_place ? rig.updated("logits", shape, Spread{c.deviation})
                         : rig.input("logits", shape, Spread{c.deviation});
  op.labels = rig.indices("labels", {c.rows}, labels);
  op.loss = rig.output("loss", {c.rows}, rig.statistics());
  if (c.scale != Scale::none) {
    if (!c.benchmark) {
      const ops::CrossEntropy forward{
          .logits = op.logits,
          .labels = op.labels,
          .loss = rig.prepared("forward_loss", {c.rows}, rig.statistics()),
          .scale = {},
          .dlogits = {}};
      rig.prepare(forward);
      op.scale = rig.input("scale", {c.scale == Scale::one ? 1 : c.rows}, rig.statistics());
      rig.loss(forward.loss, op.scale);
    } else {
      op.scale = rig.input("scale", {1}, rig.statistics());
    }
    op.dlogits = c.in_place ? op.logits : rig.output("dlogits", shape);
    rig.gradient(op.logits, op.dlogits);
  }
  rig.set_inner(c.vocabulary);
  rig.run(op);
}

struct Segments {
  std::string name;
  std::vector<int32_t> lengths;
  bool starts = true, accumulate = false;
  bool benchmark = false;
};

void segment_sum(Rig& rig, const Segments& c) {
  const auto offsets = offsets_of(c.lengths);
  ops::SegmentSum op;
  op.accumulate = c.accumulate;
  op.x = rig.input("x", {offsets.back()}, rig.statistics(), {1, 2});
  if (c.starts) op.starts = rig.indices("starts", {static_cast<int64_t>(offsets.size())}, offsets);
  const Shape shape{c.starts ? static_cast<int64_t>(c.lengths.size()) : 1};
  op.y = c.accumulate ? rig.updated("y", shape, Dtype::f64) : rig.output("y", shape, Dtype::f64);
  rig.run(op);
}

struct Draw {
  std::string name;
  int64_t vocabulary = 1;
  std::vector<ops::SamplingSettings> settings;
  std::vector<int32_t> history = {};  // [S, W]
  int64_t allow_each = 0;             // only one token in so many may be drawn; 0: all may
  bool biased = false;                // a third of the logits
  bool log_probability = true;
  bool ties = false;
  std::vector<size_t> padding = {};  // rows that are padding
  bool benchmark = false;
};

void sample(Rig& rig, const Draw& c) {
  const auto count = static_cast<int64_t>(c.settings.size());
  std::vector<double> logits;
  for (int64_t i = 0; i < count * c.vocabulary; ++i)
    logits.push_back(c.ties ? static_cast<double>(rig.random().below(3)) - 1
                            : 3 * rig.random().normal());
  std::vector<int32_t> positions;
  for (int64_t s = 0; s < count; ++s) positions.push_back(static_cast<int32_t>(17 * s));
  ops::Sample op;
  op.logits = rig.values("logits", {count, c.vocabulary}, rig.statistics(), logits);
  op.settings = rig.bytes("settings", {count, sizeof(ops::SamplingSettings)}, c.settings.data());
  if (!c.history.empty())
    op.history =
        rig.indices("history", {count, static_cast<int64_t>(c.history.size()) / count}, c.history);
  for (size_t s : c.padding) positions[s] = ops::kPadding;
  if (c.allow_each > 0) {
    const int64_t words = ops::allowed_words(c.vocabulary);
    std::vector<int32_t> allowed(static_cast<size_t>(count * words), 0);
    for (int64_t s = 0; s < count; ++s)
      for (int64_t v = s; v < c.vocabulary; v += c.allow_each)
        allowed[static_cast<size_t>(s * words + v / 32)] |= static_cast<int32_t>(1U << (v % 32));
    op.allowed = rig.indices("allowed", {count, words}, allowed);
  }
  if (c.biased) {
    std::vector<double> bias;
    for (int64_t i = 0; i < count * c.vocabulary; ++i)
      bias.push_back(i % 3 == 0 ? 2 * rig.random().normal() : 0);
    op.bias = rig.values("bias", {count, c.vocabulary}, Dtype::f32, bias);
  }
  op.positions = rig.indices("positions", {count}, positions);
  // Rows of padding keep what stood there.
  const std::vector<int32_t> before(static_cast<size_t>(count), 12345);
  op.tokens = rig.updated_indices("tokens", {count}, before);
  if (c.log_probability)
    op.log_probability = rig.updated("log_probability", {count}, rig.statistics());
  rig.set_inner(c.vocabulary);
  rig.set_magnitude(1);  // the logarithm of a certain token's probability is nothing
  rig.run(op);
}

struct Step {
  std::string name;
  std::vector<int32_t> drawn, positions;
  int64_t window = 0;  // 0: no history
};

void advance(Rig& rig, const Step& c) {
  const auto count = static_cast<int64_t>(c.drawn.size());
  ops::Advance op;
  op.drawn = rig.indices("drawn", {count}, c.drawn);
  // Rows of padding keep what stood there.
  op.inputs = rig.updated_indices("inputs", {count}, std::vector<int32_t>(c.drawn.size(), 12345));
  op.positions = rig.updated_indices("positions", {count}, c.positions);
  if (c.window > 0)
    op.history =
        rig.updated_indices("history", {count, c.window},
                            std::vector<int32_t>(static_cast<size_t>(count * c.window), -1));
  rig.run(op);
}

}  // namespace

std::vector<OpCase> vocab_cases() {
  std::vector<OpCase> cases;
  const std::vector<Dtype> f32{Dtype::f32}, statistics{Dtype::f64, Dtype::f32};
  const std::vector<Lookup> lookups{
      {.name = "one"},
      {.name = "odd", .tokens = 5, .vocabulary = 3, .width = 7},
      {.name = "repeated", .tokens = 40, .vocabulary = 4, .width = 33},
      {.name = "rare", .tokens = 6, .vocabulary = 50, .width = 64},
      {.name = "bf16_table",
       .tokens = 5,
       .vocabulary = 9,
       .width = 40,
       .table = Dtype::bf16,
       .dtypes = f32},
      {.name = "f16_table",
       .tokens = 5,
       .vocabulary = 9,
       .width = 40,
       .table = Dtype::f16,
       .dtypes = f32},
      {.name = "f32_table",
       .tokens = 5,
       .vocabulary = 9,
       .width = 40,
       .table = Dtype::f32,
       .dtypes = {Dtype::bf16}},
      {.name = "seed",
       .tokens = 512,
       .vocabulary = 32000,
       .width = 1024,
       .dtypes = f32,
       .benchmark = true},
  };
  for (const Lookup& c : lookups)
    cases.push_back(
        {"Embedding_" + c.name, [=](Rig& rig) { embedding(rig, c); }, c.dtypes, c.benchmark});
  for (const Lookup& c : lookups)
    if (!c.table)
      cases.push_back({"EmbeddingBackward_" + c.name, [=](Rig& rig) { embedding_backward(rig, c); },
                       c.dtypes, c.benchmark});
  for (const Loss& c : std::vector<Loss>{
           {.name = "one"},
           {.name = "v2", .rows = 5, .vocabulary = 2},
           {.name = "v33_scale_each", .rows = 7, .vocabulary = 33, .scale = Scale::each},
           {.name = "v1000", .rows = 3, .vocabulary = 1000},
           {.name = "no_gradient", .rows = 3, .vocabulary = 40, .scale = Scale::none},
           {.name = "in_place", .rows = 3, .vocabulary = 50, .in_place = true},
           {.name = "ignored",
            .rows = 6,
            .vocabulary = 20,
            .scale = Scale::each,
            .ignored = {0, 3, 5}},
           {.name = "ignored_in_place",
            .rows = 6,
            .vocabulary = 20,
            .in_place = true,
            .ignored = {0, 3, 5}},
           {.name = "all_ignored", .rows = 3, .vocabulary = 9, .ignored = {0, 1, 2}},
           {.name = "confident",
            .rows = 4,
            .vocabulary = 31,
            .deviation = 30,
            .dtypes = {Dtype::f32}},
           {.name = "seed",
            .rows = 256,
            .vocabulary = 32000,
            .in_place = true,
            .dtypes = f32,
            .benchmark = true}})
    cases.push_back({"CrossEntropy_" + c.name, [=](Rig& rig) { cross_entropy(rig, c); }, c.dtypes,
                     c.benchmark});
  for (const Segments& c : std::vector<Segments>{
           {.name = "one", .lengths = {1}},
           {.name = "whole", .lengths = {100}, .starts = false},
           {.name = "whole_accumulated", .lengths = {77}, .starts = false, .accumulate = true},
           {.name = "several", .lengths = {3, 0, 20, 1, 0}},
           {.name = "several_accumulated", .lengths = {3, 0, 20, 1, 0}, .accumulate = true},
           {.name = "long", .lengths = {5000, 3}}})
    cases.push_back(
        {"SegmentSum_" + c.name, [=](Rig& rig) { segment_sum(rig, c); }, statistics, c.benchmark});
  using S = ops::SamplingSettings;
  for (const Draw& c : std::vector<Draw>{
           {.name = "one", .vocabulary = 1, .settings = {S{}}},
           {.name = "plain",
            .vocabulary = 60,
            .settings = {S{.seed = 1}, S{.seed = 2}, S{.temperature = 3, .seed = 1}}},
           {.name = "padding",
            .vocabulary = 60,
            .settings = {S{.seed = 1}, S{.seed = 2}, S{.temperature = 0}, S{.seed = 4}},
            .padding = {1, 3}},
           {.name = "greedy", .vocabulary = 50, .settings = {S{.temperature = 0}, S{}}},
           {.name = "greedy_ties",
            .vocabulary = 50,
            .settings = {S{.temperature = 0}},
            .ties = true},
           {.name = "greedy_penalised",
            .vocabulary = 4,
            .settings = {S{.temperature = 0, .repeat_penalty = 50},
                         S{.temperature = 0, .repeat_penalty = 50}},
            .history = {0, 1, 2, -1, -1, -1, -1, -1}},
           // The latest token of row s is at position 17 s: entry 17 s mod 4 of the history.
           {.name = "last_of_history",
            .vocabulary = 4,
            .settings = {S{.temperature = 0, .repeat_penalty = 50, .repeat_last_n = 1},
                         S{.temperature = 0, .repeat_penalty = 50, .repeat_last_n = 3}},
            .history = {0, 1, 2, 3, 3, 2, 1, 0}},
           {.name = "allowed",
            .vocabulary = 70,
            .settings = {S{.temperature = 0}, S{.top_p = 0.9F, .seed = 2},
                         S{.top_k = 5, .repeat_penalty = 2, .seed = 3}},
            .history = {0, 7, 14},
            .allow_each = 7},
           {.name = "one_allowed",
            .vocabulary = 64,
            .settings = {S{.temperature = 0}, S{.seed = 2}},
            .allow_each = 64},
           {.name = "biased",
            .vocabulary = 70,
            .settings = {S{.temperature = 0}, S{.top_p = 0.9F, .seed = 2},
                         S{.top_k = 5, .repeat_penalty = 2, .seed = 3}},
            .history = {0, 7, 14},
            .biased = true},
           {.name = "top_k",
            .vocabulary = 99,
            .settings = {S{.top_k = 1, .seed = 1}, S{.top_k = 5, .seed = 2},
                         S{.top_k = 1000, .seed = 3}}},
           {.name = "top_p",
            .vocabulary = 99,
            .settings = {S{.top_p = 0, .seed = 1}, S{.top_p = 0.5F, .seed = 2},
                         S{.top_p = 0.999F, .seed = 3}}},
           {.name = "min_p",
            .vocabulary = 99,
            .settings = {S{.min_p = 1, .seed = 1}, S{.min_p = 0.1F, .seed = 2},
                         S{.min_p = 0.001F, .seed = 3}}},
           {.name = "filters",
            .vocabulary = 300,
            .settings = {S{.temperature = 0.7F,
                           .top_k = 40,
                           .top_p = 0.9F,
                           .min_p = 0.02F,
                           .repeat_penalty = 1.3F,
                           .seed = 7},
                         S{.temperature = 1.5F,
                           .top_k = 100,
                           .top_p = 0.95F,
                           .min_p = 0.01F,
                           .repeat_penalty = 0.8F,
                           .seed = 8}},
            .history = {5, 5, 7, -1, 299, 0, 0, -1},
            .log_probability = false},
           {.name = "ties",
            .vocabulary = 40,
            .settings = {S{.top_k = 3, .seed = 1}, S{.top_p = 0.6F, .seed = 2},
                         S{.top_k = 17, .top_p = 0.9F, .seed = 3}},
            .ties = true},
           {.name = "ties_large",
            .vocabulary = 3000,
            .settings = {S{.seed = 1}, S{.top_p = 0.6F, .seed = 2}, S{.top_k = 1700, .seed = 3}},
            .ties = true},
           {.name = "temperatures",  // nearly all tokens alike, or all but a few impossible
            .vocabulary = 2000,
            .settings = {S{.temperature = 1000, .seed = 1},
                         S{.temperature = 1000, .top_k = 900, .top_p = 0.5F, .seed = 2},
                         S{.temperature = 0.01F, .seed = 3},
                         S{.temperature = 0.05F, .top_p = 0.999F, .min_p = 1e-9F, .seed = 4}}},
           {.name = "seed",
            .vocabulary = 32000,
            .settings = {S{.top_k = 40, .top_p = 0.9F}},
            .benchmark = true}})
    cases.push_back(
        {"Sample_" + c.name, [=](Rig& rig) { sample(rig, c); }, statistics, c.benchmark});
  for (const Step& c : std::vector<Step>{
           {.name = "one", .drawn = {4}, .positions = {0}},
           {.name = "padding", .drawn = {4, 7, 1}, .positions = {3, -1, -1}, .window = 4},
           {.name = "history", .drawn = {9, 2, 5}, .positions = {0, 6, 23}, .window = 4}})
    cases.push_back({"Advance_" + c.name, [=](Rig& rig) { advance(rig, c); }, {Dtype::f32}});
  return cases;
}

}  // namespace mixtral::test
