#include "ops/moe.h"

#include <algorithm>
#include <cmath>

#include "tests/op_cases.h"

namespace mixtral::test {
namespace {

const std::vector<Dtype> kStatistics{Dtype::f64, Dtype::f32};

struct Router {
  std::string name;
  int64_t tokens = 1, experts = 1, k = 1;
  double bias = 0;                    // added to the logits of expert 0
  bool ties = false;                  // logits take few values
  std::vector<int64_t> padding = {};  // tokens that are padding
  bool benchmark = false;
};

std::vector<Router> routers() {
  return {
      {.name = "one"},
      {.name = "e5_k1", .tokens = 9, .experts = 5, .k = 1},
      {.name = "e8_k2", .tokens = 21, .experts = 8, .k = 2},
      {.name = "e8_k3_one_token", .tokens = 1, .experts = 8, .k = 3},
      {.name = "e32_k4", .tokens = 33, .experts = 32, .k = 4},
      {.name = "e4_k4", .tokens = 7, .experts = 4, .k = 4},
      {.name = "ties", .tokens = 40, .experts = 8, .k = 2, .ties = true},
      {.name = "padding", .tokens = 9, .experts = 4, .k = 2, .padding = {0, 3, 4, 8}},
      {.name = "padding_only", .tokens = 2, .experts = 4, .k = 2, .padding = {0, 1}},
      {.name = "one_has_all", .tokens = 12, .experts = 5, .k = 1, .bias = 40},
      {.name = "one_has_none", .tokens = 12, .experts = 5, .k = 2, .bias = -40},
      {.name = "long", .tokens = 1500, .experts = 8, .k = 2},
      {.name = "seed", .tokens = 512, .experts = 8, .k = 2, .benchmark = true},
  };
}

/// Logits of the size that routers have, no two of a token closer than 0.02 (unless ties are
/// asked for), so that a small change does not change who is chosen.
Tensor make_logits(Rig& rig, const Router& c, const std::string& name) {
  std::vector<double> logits;
  for (int64_t n = 0; n < c.tokens; ++n) {
    std::vector<double> row;
    for (int64_t e = 0; e < c.experts; ++e)
      row.push_back(c.ties ? static_cast<double>(rig.random().below(3))
                           : 0.1 * static_cast<double>(e) + 0.08 * rig.random().uniform());
    for (size_t e = row.size(); e > 1; --e) std::swap(row[e - 1], row[rig.random().below(e)]);
    row[0] += c.bias;
    logits.insert(logits.end(), row.begin(), row.end());
  }
  return rig.values(name, {c.tokens, c.experts}, rig.statistics(), logits);
}

Tensor make_positions(Rig& rig, const Router& c) {
  if (c.padding.empty()) return {};
  std::vector<int32_t> positions(static_cast<size_t>(c.tokens), 5);
  for (int64_t n : c.padding) positions[static_cast<size_t>(n)] = ops::kPadding;
  return rig.indices("positions", {c.tokens}, positions);
}

/// Route with its outputs; `make` is Rig::output or Rig::prepared.
template <class Make>
ops::Route make_route(const Router& c, const Tensor& logits, const Tensor& positions,
                      const Make& make) {
  return {.logits = logits,
          .positions = positions,
          .weights = make("weights", {c.tokens, c.k}, logits.dtype()),
          .expert = make("expert", {c.tokens, c.k}, Dtype::i32),
          .slot = make("slot", {c.tokens, c.k}, Dtype::i32),
          .source = make("source", {c.tokens * c.k}, Dtype::i32),
          .offsets = make("offsets", {c.experts + 1}, Dtype::i32)};
}

void route(Rig& rig, const Router& c) {
  const Tensor logits = make_logits(rig, c, "logits"), positions = make_positions(rig, c);
  rig.run(make_route(c, logits, positions, [&](auto name, Shape shape, Dtype dtype) {
    return rig.output(name, shape, dtype);
  }));
}

struct RouterLoss {
  std::string name;
  Router router;
  int64_t layers = 1;
  bool pooled = false;
  double coefficient = 0.02, z_coefficient = 0;
};

/// The last of several layers' RouteBackward, with the losses that go over all of them.
void route_backward(Rig& rig, const RouterLoss& c) {
  const int64_t tokens = c.router.tokens, experts = c.router.experts, layers = c.layers;
  const Dtype dtype = rig.statistics();
  const auto prepared = [&](auto name, Shape shape, Dtype type) {
    return rig.prepared(name, shape, type);
  };
  ops::BalanceLoss balance{.load = rig.prepared("load", {layers, experts}, dtype),
                           .importance = rig.prepared("importance", {layers, experts}, dtype),
                           .z = rig.prepared("z", {layers}, dtype),
                           .losses = rig.prepared("losses", {2}, dtype),
                           .dprobability = rig.prepared("dprobability", {layers, experts}, dtype),
                           .tokens = tokens,
                           .coefficient = c.coefficient,
                           .pooled = c.pooled};
  const Tensor entropy = rig.prepared("entropy", {layers}, dtype);
  ops::Route last;
  for (int64_t l = 0; l < layers; ++l) {
    last = make_route(c.router, make_logits(rig, c.router, "logits"), {}, prepared);
    rig.prepare(last);
    rig.prepare(ops::RouterStatistics{.logits = last.logits,
                                      .positions = {},
                                      .offsets = last.offsets,
                                      .load = balance.load[l],
                                      .importance = balance.importance[l],
                                      .z = balance.z.slice(l, l + 1),
                                      .entropy = entropy.slice(l, l + 1)});
  }
  rig.prepare(balance);
  const Tensor dweights = rig.input("dweights", {tokens, c.router.k}, dtype, {0.1});
  const Tensor dlosses = rig.values("dlosses", {2}, dtype, {c.coefficient, c.z_coefficient});
  ops::RouteBackward op{.logits = last.logits,
                        .weights = last.weights,
                        .expert = last.expert,
                        .dweights = dweights,
                        .dprobability = {},
                        .dlogits = rig.output("dlogits", {tokens, experts}, dtype),
                        .z_scale = c.z_coefficient / static_cast<double>(layers * tokens)};
  if (c.coefficient != 0) op.dprobability = balance.dprobability[layers - 1];
  rig.loss(last.weights, dweights);
  rig.loss(balance.losses, dlosses);
  rig.gradient(last.logits, op.dlogits);
  rig.set_magnitude(0.05);  // the size of w · dw; the terms cancel one another
  rig.run(op);
}

void router_statistics(Rig& rig, const Router& c) {
  const Dtype dtype = rig.statistics();
  const Tensor logits = make_logits(rig, c, "logits"), positions = make_positions(rig, c);
  const ops::Route forward = make_route(
      c, logits, positions,
      [&](auto name, Shape shape, Dtype type) { return rig.prepared(name, shape, type); });
  rig.prepare(forward);
  rig.set_inner(c.tokens);
  rig.run(ops::RouterStatistics{.logits = forward.logits,
                                .positions = positions,
                                .offsets = forward.offsets,
                                .load = rig.output("load", {c.experts}, dtype),
                                .importance = rig.output("importance", {c.experts}, dtype),
                                .z = rig.output("z", {1}, dtype),
                                .entropy = rig.output("entropy", {1}, dtype)});
}

struct Balance {
  std::string name;
  int64_t layers = 1, experts = 1;
  bool pooled = false, gradient = true;
};

void balance_loss(Rig& rig, const Balance& c) {
  const Dtype dtype = rig.statistics();
  const Shape shape{c.layers, c.experts};
  ops::BalanceLoss op{.load = rig.input("load", shape, dtype, {0.1, 0.5}),
                      .importance = rig.input("importance", shape, dtype, {0.1, 0.5}),
                      .z = rig.input("z", {c.layers}, dtype, {1, 4}),
                      .losses = rig.output("losses", {2}, dtype),
                      .dprobability = {},
                      .tokens = 37,
                      .coefficient = 0.02,
                      .pooled = c.pooled};
  if (c.gradient) op.dprobability = rig.output("dprobability", shape, dtype);
  rig.run(op);
}

struct Rows {
  std::string name;
  int64_t tokens = 1, experts = 1, k = 1, width = 1;
  std::vector<Dtype> dtypes = {Dtype::f64, Dtype::f32, Dtype::bf16};
  bool benchmark = false;
};

enum class Padding { none, some };

std::vector<Rows> rows() {
  const std::vector<Dtype> narrow{Dtype::f32, Dtype::bf16};
  return {
      {.name = "one"},
      {.name = "e5_k1", .tokens = 6, .experts = 5, .k = 1, .width = 7},
      {.name = "e8_k2", .tokens = 11, .experts = 8, .k = 2, .width = 64},
      {.name = "e8_k3", .tokens = 3, .experts = 8, .k = 3, .width = 33},
      {.name = "e32_k4", .tokens = 9, .experts = 32, .k = 4, .width = 130, .dtypes = narrow},
      {.name = "one_token", .tokens = 1, .experts = 8, .k = 2, .width = 20},
      {.name = "seed",
       .tokens = 512,
       .experts = 8,
       .k = 2,
       .width = 1024,
       .dtypes = narrow,
       .benchmark = true},
  };
}

enum class Division { by_k, by_one };

/// The gather of tokens, as the gradient of a sum over each token's rows.
void gather_rows(Rig& rig, const Rows& c, Division division) {
  const Routing routing = draw_routing(rig.random(), c.tokens, c.experts, c.k);
  const int64_t count = c.tokens * c.k;
  ops::GatherRows op;
  op.divisor = division == Division::by_k ? c.k : 1;
  op.x = rig.input("x", {count / op.divisor, c.width});
  op.source = rig.indices("source", {count}, routing.source);
  op.y = rig.output("y", {count, c.width});
  if (division == Division::by_k) {
    const ops::CombineRows forward{.y = rig.input("rows", op.y.shape()),
                                   .slot = rig.indices("slot", {c.tokens, c.k}, routing.slot),
                                   .residual = {},
                                   .out = rig.prepared("combined", op.x.shape())};
    rig.prepare(forward);
    rig.loss(forward.out, op.x);
    rig.gradient(forward.y, op.y);
  }
  rig.run(op);
}

enum class Residual { none, separate, over_out };

/// The sum over each token's rows, as the gradient of their gather.
void combine_rows(Rig& rig, const Rows& c, Residual residual, Padding padding = Padding::none) {
  Routing routing = draw_routing(rig.random(), c.tokens, c.experts, c.k);
  if (padding == Padding::some)  // every other token
    for (int64_t a = 0; a < c.tokens * c.k; ++a)
      if (a / c.k % 2 == 0) routing.slot[static_cast<size_t>(a)] = -1;
  const int64_t count = c.tokens * c.k;
  const Shape shape{c.tokens, c.width};
  ops::CombineRows op;
  op.y = rig.input("y", {count, c.width});
  op.slot = rig.indices("slot", {c.tokens, c.k}, routing.slot);
  op.out = residual == Residual::over_out ? rig.updated("out", shape) : rig.output("out", shape);
  if (residual == Residual::separate) op.residual = rig.input("residual", shape);
  if (residual == Residual::over_out) op.residual = op.out;
  if (padding == Padding::some) return rig.run(op);
  const ops::GatherRows forward{.x = rig.input("x", shape),
                                .source = rig.indices("source", {count}, routing.source),
                                .y = rig.prepared("gathered", op.y.shape()),
                                .divisor = c.k};
  rig.prepare(forward);
  if (residual != Residual::separate) {
    rig.loss(forward.y, op.y);
    rig.gradient(forward.x, op.out, residual == Residual::over_out);
  }
  rig.run(op);
}

ops::SwiGlu make_swiglu(Rig& rig, const Rows& c, const Tensor& gate_up, const Tensor& h) {
  const Routing routing = draw_routing(rig.random(), c.tokens, c.experts, c.k);
  std::vector<double> weights;
  for (int64_t a = 0; a < c.tokens * c.k; ++a) weights.push_back(rig.random().uniform());
  return {.gate_up = gate_up,
          .weights = rig.values("weights", {c.tokens, c.k}, rig.statistics(), weights),
          .source = rig.indices("source", {c.tokens * c.k}, routing.source),
          .h = h};
}

void swiglu(Rig& rig, const Rows& c) {
  const int64_t count = c.tokens * c.k;
  const Tensor gate_up = rig.input("gate_up", {count, 2 * c.width}, Spread{2});
  rig.run(make_swiglu(rig, c, gate_up, rig.output("h", {count, c.width})));
}

/// The experts' first product with SwiGLU after it.
void product_swiglu(Rig& rig, const Rows& c, bool keep) {
  const int64_t count = c.tokens * c.k, inputs = c.benchmark ? c.width : 24;
  const Routing routing = draw_routing(rig.random(), c.tokens, c.experts, c.k);
  const Shape wide{count, 2 * c.width};
  const Spread spread{2 / std::sqrt(static_cast<double>(inputs))};
  rig.set_inner(inputs);
  rig.run(ops::GroupedMatmulSwiGlu{
      .x = rig.input("x", {count, inputs}),
      .weight = rig.input("weight", {c.experts, 2 * c.width, inputs}, spread),
      .offsets = rig.indices("offsets", {c.experts + 1}, routing.offsets),
      .weights = rig.input("weights", {c.tokens, c.k}, rig.statistics(), {0.2, 0.5}),
      .source = rig.indices("source", {count}, routing.source),
      .gate_up = keep ? rig.output("gate_up", wide) : rig.room("gate_up", wide),
      .h = rig.output("h", {count, c.width}),
      .keep_gate_up = keep});
}

enum class Place { separate, over_input };
enum class Hidden { not_asked, separate, over_gradient };

void swiglu_backward(Rig& rig, const Rows& c, Place place, Hidden hidden = Hidden::not_asked) {
  const Shape wide{c.tokens * c.k, 2 * c.width}, narrow{c.tokens * c.k, c.width};
  const Tensor gate_up = place == Place::separate ? rig.input("gate_up", wide, Spread{2})
                                                  : rig.updated("gate_up", wide, Spread{2});
  const ops::SwiGlu forward = make_swiglu(rig, c, gate_up, rig.prepared("h", narrow));
  rig.prepare(forward);
  ops::SwiGluBackward op{
      .gate_up = gate_up,
      .weights = forward.weights,
      .source = forward.source,
      .dh = hidden == Hidden::over_gradient ? rig.updated("dh", narrow) : rig.input("dh", narrow),
      .d_gate_up = place == Place::separate ? rig.output("d_gate_up", wide) : gate_up,
      .dweights = rig.output("dweights", forward.weights.shape(), rig.statistics()),
      .h = {}};
  if (hidden == Hidden::separate) op.h = rig.output("h again", narrow);
  if (hidden == Hidden::over_gradient) op.h = op.dh;
  rig.loss(forward.h, op.dh);
  rig.gradient(gate_up, op.d_gate_up);
  rig.gradient(forward.weights, op.dweights);
  rig.set_inner(c.width);
  rig.run(op);
}

}  // namespace

std::vector<OpCase> moe_cases() {
  std::vector<OpCase> cases;
  const auto add = [&](std::string name, std::function<void(Rig&)> build, std::vector<Dtype> dtypes,
                       bool benchmark = false) {
    cases.push_back({std::move(name), std::move(build), std::move(dtypes), benchmark});
  };
  for (const Router& c : routers())
    add("Route_" + c.name, [=](Rig& rig) { route(rig, c); }, kStatistics, c.benchmark);
  const Router small{.tokens = 7, .experts = 5, .k = 2};
  for (const RouterLoss& c : std::vector<RouterLoss>{
           {.name = "one", .router = {}},
           {.name = "per_layer", .router = small, .layers = 2},
           {.name = "pooled", .router = small, .layers = 3, .pooled = true},
           {.name = "z", .router = small, .layers = 2, .coefficient = 0, .z_coefficient = 0.01},
           {.name = "balance_and_z_e8",
            .router = {.tokens = 6, .experts = 8, .k = 3},
            .layers = 2,
            .pooled = true,
            .coefficient = 0.5,
            .z_coefficient = 0.3},
           {.name = "weights_only_e32",
            .router = {.tokens = 3, .experts = 32, .k = 4},
            .coefficient = 0},
           {.name = "one_has_all",
            .router = {.tokens = 6, .experts = 5, .k = 2, .bias = 5},
            .coefficient = 0.1}})
    add("RouteBackward_" + c.name, [=](Rig& rig) { route_backward(rig, c); }, kStatistics);
  for (const Router& c : routers())
    add(
        "RouterStatistics_" + c.name, [=](Rig& rig) { router_statistics(rig, c); }, kStatistics,
        c.benchmark);
  for (const Balance& c :
       std::vector<Balance>{{.name = "one"},
                            {.name = "per_layer", .layers = 3, .experts = 8},
                            {.name = "pooled", .layers = 3, .experts = 8, .pooled = true},
                            {.name = "no_gradient", .layers = 12, .experts = 5, .gradient = false}})
    add("BalanceLoss_" + c.name, [=](Rig& rig) { balance_loss(rig, c); }, kStatistics);
  for (const Rows& c : rows()) {
    add(
        "GatherRows_" + c.name, [=](Rig& rig) { gather_rows(rig, c, Division::by_k); }, c.dtypes,
        c.benchmark);
    if (!c.benchmark)
      add(
          "GatherRows_permute_" + c.name, [=](Rig& rig) { gather_rows(rig, c, Division::by_one); },
          c.dtypes);
  }
  for (const Rows& c : rows()) {
    add("CombineRows_" + c.name, [=](Rig& rig) { combine_rows(rig, c, Residual::none); }, c.dtypes);
    add(
        "CombineRows_residual_" + c.name,
        [=](Rig& rig) { combine_rows(rig, c, Residual::separate); }, c.dtypes, c.benchmark);
    add(
        "CombineRows_residual_in_place_" + c.name,
        [=](Rig& rig) { combine_rows(rig, c, Residual::over_out); }, c.dtypes);
    add(
        "CombineRows_padding_" + c.name,
        [=](Rig& rig) { combine_rows(rig, c, Residual::none, Padding::some); }, c.dtypes);
    add(
        "CombineRows_padding_residual_" + c.name,
        [=](Rig& rig) { combine_rows(rig, c, Residual::separate, Padding::some); }, c.dtypes);
  }
  for (const Rows& c : rows())
    add("SwiGlu_" + c.name, [=](Rig& rig) { swiglu(rig, c); }, c.dtypes, c.benchmark);
  for (const Rows& c : rows()) {
    add(
        "SwiGluBackward_" + c.name, [=](Rig& rig) { swiglu_backward(rig, c, Place::separate); },
        c.dtypes, c.benchmark);
    if (!c.benchmark)
      add(
          "SwiGluBackward_in_place_" + c.name,
          [=](Rig& rig) { swiglu_backward(rig, c, Place::over_input); }, c.dtypes);
    add(
        "SwiGluBackward_hidden_" + c.name,
        [=](Rig& rig) { swiglu_backward(rig, c, Place::separate, Hidden::separate); }, c.dtypes);
    add(
        "SwiGluBackward_hidden_in_place_" + c.name,
        [=](Rig& rig) { swiglu_backward(rig, c, Place::over_input, Hidden::over_gradient); },
        c.dtypes);
  }
  for (const Rows& c : rows()) {
    add(
        "GroupedMatmulSwiGlu_" + c.name, [=](Rig& rig) { product_swiglu(rig, c, true); }, c.dtypes,
        c.benchmark);
    add(
        "GroupedMatmulSwiGlu_alone_" + c.name, [=](Rig& rig) { product_swiglu(rig, c, false); },
        c.dtypes);
  }
  // Only one variant of a large case is worth the benchmark's time.
  std::erase_if(cases, [](const OpCase& c) { return c.name.ends_with("_seed") && !c.benchmark; });
  return cases;
}

}  // namespace mixtral::test
