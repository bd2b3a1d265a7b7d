#include "nn/moe.h"

#include <algorithm>
#include <span>
#include <vector>

namespace mixtral::nn {

MixtureOfExperts::Saved MixtureOfExperts::allocate_saved(Context& ctx, int64_t n) const {
  const int64_t k = experts_per_token, e = router->outputs(), rows = n * k;
  return {.logits = ctx.allocate({n, e}, ctx.statistics()),
          .weights = ctx.allocate({n, k}, ctx.statistics()),
          .expert = ctx.allocate({n, k}, Dtype::i32),
          .slot = ctx.allocate({n, k}, Dtype::i32),
          .source = ctx.allocate({rows}, Dtype::i32),
          .offsets = ctx.allocate({e + 1}, Dtype::i32),
          .gate_up = ctx.allocate({rows, gate_up->outputs()})};
}

void MixtureOfExperts::forward(Context& ctx, const Tensor& x, const Sequences& sequences,
                               const Tensor& residual, const Tensor& out, Saved* saved,
                               const RouterReport* report) const {
  const ArenaScope scope(ctx.arena());
  // Only batches over a cache are padded.
  const Tensor positions = sequences.rows ? sequences.positions : Tensor();
  const int64_t n = x.dim(0), d = x.dim(1), rows = n * experts_per_token;
  Saved s = saved ? *saved : allocate_saved(ctx, n);
  if (report && report->logits) {
    CHECK(!saved, "each token's routing is reported in inference only");
    s.logits = report->logits;
    s.expert = report->expert;
  }

  Tensor told;  // offsets, this layer's and the next one's, which the host reads
  if (streaming.on) {
    CHECK(!saved, "streamed experts are for inference");
    told = ctx.allocate({streaming.next.router ? 2 : 1, router->outputs() + 1}, Dtype::i32);
    s.offsets = told[0];
  }

  router->forward(ctx, x, sequences.groups, s.logits);
  ctx.run(ops::Route{.logits = s.logits,
                     .positions = positions,
                     .weights = s.weights,
                     .expert = s.expert,
                     .slot = s.slot,
                     .source = s.source,
                     .offsets = s.offsets});
  if (report && report->load) {
    ctx.run(ops::RouterStatistics{.logits = s.logits,
                                  .positions = positions,
                                  .offsets = s.offsets,
                                  .load = report->load,
                                  .importance = report->importance,
                                  .z = report->z,
                                  .entropy = report->entropy});
  }
  if (told) {
    if (streaming.next.router) look_ahead(ctx, residual, positions, told[1]);
    announce(ctx, told);
  }
  const RowGroups groups = sequences.adapters.sort(ctx, s.source, s.offsets, experts_per_token);
  const Tensor h = ctx.allocate({rows, down->inputs()});
  {
    const ArenaScope gathered(ctx.arena());
    const Tensor xs = ctx.allocate({rows, d});
    ctx.run(ops::GatherRows{.x = x, .source = s.source, .y = xs, .divisor = experts_per_token});
    gate_up->forward_swiglu(ctx,
                            {.x = xs,
                             .weight = {},
                             .offsets = {},
                             .weights = s.weights,
                             .source = s.source,
                             .gate_up = s.gate_up,
                             .h = h,
                             .keep_gate_up = saved != nullptr},
                            groups);
  }
  const Tensor ys = ctx.allocate({rows, d});
  down->forward(ctx, h, groups, ys);
  ctx.run(ops::CombineRows{.y = ys, .slot = s.slot, .residual = residual, .out = out});
}

/// Asks the next layer's router with this layer's residual.
void MixtureOfExperts::look_ahead(Context& ctx, const Tensor& residual, const Tensor& positions,
                                  const Tensor& offsets) const {
  const ArenaScope scope(ctx.arena());
  const Next& next = streaming.next;
  const Tensor x = ctx.allocate(residual.shape());
  ctx.run(ops::RmsNorm{.x = residual, .weight = next.norm->value, .y = x, .eps = next.eps});
  const int64_t n = x.dim(0), k = experts_per_token, e = next.router->outputs();
  const Tensor logits = ctx.allocate({n, e}, ctx.statistics());
  next.router->forward(ctx, x, {}, logits);
  ctx.run(ops::Route{.logits = logits,
                     .positions = positions,
                     .weights = ctx.allocate({n, k}, ctx.statistics()),
                     .expert = ctx.allocate({n, k}, Dtype::i32),
                     .slot = ctx.allocate({n, k}, Dtype::i32),
                     .source = ctx.allocate({n * k}, Dtype::i32),
                     .offsets = offsets});
}

/// Brings the routers' choices to the host, and tells the store.
void MixtureOfExperts::announce(Context& ctx, const Tensor& offsets) const {
  if (!streaming.store) return;
  const auto all = static_cast<size_t>(offsets.dim(1));
  std::vector<int32_t> begins(static_cast<size_t>(offsets.numel()));
  ctx.backend().download(offsets, Tensor(std::span(begins)));
  const auto chosen = [&](std::span<const int32_t> begin) {
    std::vector<int32_t> experts;
    for (size_t e = 0; e + 1 < all; ++e)
      if (begin[e] < begin[e + 1]) experts.push_back(static_cast<int32_t>(e));
    return experts;
  };
  streaming.store->need(streaming.layer, chosen(std::span(begins).first(all)));
  if (begins.size() == all) return;
  const std::span<const int32_t> next = std::span(begins).last(all);
  const auto rows = [&](int32_t expert) {
    const auto e = static_cast<size_t>(expert);
    return next[e + 1] - next[e];
  };
  std::vector<int32_t> likely = chosen(next);
  std::ranges::stable_sort(likely, std::ranges::greater(), rows);
  streaming.store->expect(streaming.next.layer, likely);
}

void MixtureOfExperts::backward(Context& ctx, const Tensor& dout, const Tensor& x,
                                const Sequences& sequences, const Saved& saved,
                                const RouterGradient& losses, const Tensor& dx) const {
  const ArenaScope scope(ctx.arena());
  const RowGroups groups =
      sequences.adapters.sort(ctx, saved.source, saved.offsets, experts_per_token);
  const int64_t rows = saved.source.dim(0), d = x.dim(1);
  const Tensor dweights = ctx.allocate(saved.weights.shape(), ctx.statistics());
  const Tensor d_gate_up = ctx.allocate(saved.gate_up.shape());
  {
    // h is not kept, which would take a third more memory: the pass that reads gate and up for
    // their gradients makes it again, in the place of its own gradient.
    const ArenaScope hidden(ctx.arena());
    const Tensor dys = ctx.allocate({rows, d});
    const Tensor dh = ctx.allocate({rows, down->inputs()});
    ctx.run(
        ops::GatherRows{.x = dout, .source = saved.source, .y = dys, .divisor = experts_per_token});
    down->backward_input(ctx, dys, groups, dh, Write::assign);
    const Tensor h = down->reads_input() ? dh : Tensor();
    ctx.run(ops::SwiGluBackward{.gate_up = saved.gate_up,
                                .weights = saved.weights,
                                .source = saved.source,
                                .dh = dh,
                                .d_gate_up = d_gate_up,
                                .dweights = dweights,
                                .h = h});
    if (h) down->backward_weight(ctx, dys, h, groups);
  }
  Tensor xs;
  if (gate_up->reads_input()) {
    xs = ctx.allocate({rows, d});
    ctx.run(ops::GatherRows{.x = x, .source = saved.source, .y = xs, .divisor = experts_per_token});
  }
  const Tensor dxs = ctx.allocate({rows, d});
  gate_up->backward(ctx, d_gate_up, xs, groups, dxs, Write::assign);
  ctx.run(ops::CombineRows{.y = dxs, .slot = saved.slot, .out = dx});

  const Tensor dlogits = ctx.allocate(saved.logits.shape(), ctx.statistics());
  ctx.run(ops::RouteBackward{.logits = saved.logits,
                             .weights = saved.weights,
                             .expert = saved.expert,
                             .dweights = dweights,
                             .dprobability = losses.dprobability,
                             .dlogits = dlogits,
                             .z_scale = losses.z_scale});
  // x reaches the loss through the experts and through the router: the second path joins here.
  router->backward(ctx, dlogits, x, sequences.groups, dx, Write::accumulate);
}

void MixtureOfExperts::for_each_parameter(const ParameterVisitor& visit) {
  router->for_each_parameter(visit);
  gate_up->for_each_parameter(visit);
  down->for_each_parameter(visit);
}

}  // namespace mixtral::nn
