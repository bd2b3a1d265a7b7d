#include "model/loss.h"

#include <algorithm>
#include <cmath>

namespace mixtral {
namespace {

int64_t slice_rows(const Backend& backend, int64_t tokens, int64_t vocabulary) {
  return std::clamp<int64_t>(backend.slice_elements() / vocabulary, 1, tokens);
}

/// Adds the router's losses to the totals, and gives their gradient for each layer.
nn::RouterGradient router_losses(Context& ctx, const Mixtral& model, int64_t tokens,
                                 const Objective& objective, double share, const LossTotals& totals,
                                 const Mixtral::RouterReports& reports, bool gradient) {
  const auto& config = model.config();
  const bool balanced = objective.balance != Objective::Balance::off;
  nn::RouterGradient result;
  if (gradient && balanced)
    result.dprobability = ctx.allocate(reports.load.shape(), ctx.statistics());
  result.z_scale =
      objective.z_coefficient * share / static_cast<double>(tokens * config.num_layers);
  const Tensor losses = ctx.allocate({2}, ctx.statistics());
  ctx.run(ops::BalanceLoss{.load = reports.load,
                           .importance = reports.importance,
                           .z = reports.z,
                           .losses = losses,
                           .dprobability = result.dprobability,
                           .tokens = tokens,
                           .coefficient = objective.aux_coefficient * share,
                           .pooled = objective.balance == Objective::Balance::hf});
  ctx.run(ops::AddScaled{.x = losses, .y = totals.router, .scale = share});
  return result;
}

/// The cross-entropy [N] of hidden states [N, D], slice by slice. With a label scale, [1] or [N],
/// also the gradient: the head's accumulates, that of the hidden states is assigned to dhidden.
void token_losses_of(Context& ctx, const Mixtral& model, const Batch& batch, const Tensor& hidden,
                     const Tensor& label_scale, const Tensor& dhidden, const Tensor& losses) {
  const ArenaScope scope(ctx.arena());
  const int64_t n = batch.size(), v = model.config().vocab_size;
  const int64_t rows = slice_rows(ctx.backend(), n, v);
  const bool scale_each = label_scale && label_scale.dim(0) > 1;
  const Tensor room = ctx.allocate({rows, v}, ctx.statistics());
  // The gradient has the activations' type; where that is the logits' own, it takes their place.
  const bool in_place = ctx.dtype() == ctx.statistics();
  const Tensor gradient = label_scale && !in_place ? ctx.allocate({rows, v}) : room;
  for (int64_t begin = 0; begin < n; begin += rows) {
    const int64_t end = std::min(n, begin + rows);
    const Tensor logits = room.slice(0, end - begin);
    const Tensor dlogits = gradient.slice(0, end - begin);
    const Tensor x = hidden.slice(begin, end);
    const nn::TokenAdapters adapters = batch.sequences.adapters.slice(begin, end);
    model.logits(ctx, x, logits, adapters);
    ctx.run(ops::CrossEntropy{.logits = logits,
                              .labels = batch.labels.slice(begin, end),
                              .loss = losses.slice(begin, end),
                              .scale = scale_each ? label_scale.slice(begin, end) : label_scale,
                              .dlogits = label_scale ? dlogits : Tensor()});
    if (label_scale)
      model.head().backward(ctx, dlogits, x, adapters.sort(ctx), dhidden.slice(begin, end),
                            nn::Write::assign);
  }
}

/// The same, added to the totals.
void vocabulary_loss(Context& ctx, const Mixtral& model, const Batch& batch, const Tensor& hidden,
                     const Tensor& label_scale, const Tensor& dhidden, const LossTotals& totals,
                     const Tensor& token_losses) {
  const ArenaScope scope(ctx.arena());
  const Tensor losses =
      token_losses ? token_losses : ctx.allocate({batch.size()}, ctx.statistics());
  token_losses_of(ctx, model, batch, hidden, label_scale, dhidden, losses);
  ctx.run(ops::SegmentSum{.x = losses, .y = totals.cross_entropy, .accumulate = true});
}

}  // namespace

int64_t logits_slice_bytes(const Backend& backend, int64_t tokens, int64_t vocabulary,
                           Dtype activations) {
  const Dtype statistics = ops::statistics_dtype(activations);
  const int64_t gradient = activations == statistics ? 0 : size_of(activations);
  return slice_rows(backend, tokens, vocabulary) * vocabulary * (size_of(statistics) + gradient);
}

LossTotals LossTotals::allocate(Context& ctx) {
  LossTotals totals{.cross_entropy = ctx.allocate({1}, Dtype::f64),
                    .router = ctx.allocate({2}, ctx.statistics())};
  ctx.run(ops::Fill{.x = totals.cross_entropy});
  ctx.run(ops::Fill{.x = totals.router});
  return totals;
}

LossValues read(Context& ctx, const LossTotals& totals, const Objective& objective,
                int64_t labels) {
  double cross_entropy = 0;
  ctx.backend().download(totals.cross_entropy, Tensor(&cross_entropy, {1}, Dtype::f64));
  LossValues values;
  values.cross_entropy = labels > 0 ? cross_entropy / static_cast<double>(labels) : 0;
  if (totals.router.dtype() == Dtype::f64) {
    double router[2];
    ctx.backend().download(totals.router, Tensor(router, {2}, Dtype::f64));
    values.aux = router[0];
    values.z = router[1];
  } else {
    float router[2];
    ctx.backend().download(totals.router, Tensor(router, {2}, Dtype::f32));
    values.aux = static_cast<double>(router[0]);
    values.z = static_cast<double>(router[1]);
  }
  values.total = objective.total(values.cross_entropy, values.aux, values.z);
  return values;
}

void accumulate_gradients(Context& ctx, const Mixtral& model, const Batch& batch,
                          const Objective& objective, const GradientOptions& options,
                          const LossTotals& totals, const Mixtral::RouterReports* reports) {
  const ArenaScope scope(ctx.arena());
  const Mixtral::RouterReports own = reports ? *reports : model.allocate_reports(ctx);
  Mixtral::Saved saved;
  saved.recompute = options.recompute;
  const Tensor hidden = model.forward(ctx, batch, nullptr, &saved, &own);
  const Tensor dhidden = ctx.allocate(hidden.shape());
  Tensor scale = options.label_scale;
  if (options.weigh) {
    const Tensor losses = ctx.allocate({batch.size()}, ctx.statistics());
    token_losses_of(ctx, model, batch, hidden, {}, {}, losses);
    scale = options.weigh(losses);
  }
  vocabulary_loss(ctx, model, batch, hidden, scale, dhidden, totals, {});
  const nn::RouterGradient router =
      router_losses(ctx, model, batch.size(), objective, options.share, totals, own, true);
  model.backward(ctx, batch, dhidden, saved, router);
}

void accumulate_losses(Context& ctx, const Mixtral& model, const Batch& batch,
                       const Objective& objective, double share, const LossTotals& totals,
                       const Mixtral::RouterReports* reports, const Tensor& token_losses) {
  const ArenaScope scope(ctx.arena());
  const Mixtral::RouterReports own = reports ? *reports : model.allocate_reports(ctx);
  const Tensor hidden = model.forward(ctx, batch, nullptr, nullptr, &own);
  vocabulary_loss(ctx, model, batch, hidden, {}, {}, totals, token_losses);
  router_losses(ctx, model, batch.size(), objective, share, totals, own, false);
}

}  // namespace mixtral
