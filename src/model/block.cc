#include "model/block.h"

#include <optional>

namespace mixtral {

Block::Saved Block::allocate_saved(Context& ctx, int64_t n) const {
  const int64_t d = attention_norm.shape[0];
  const auto& heads = attention.heads;
  Saved s;
  s.rstd = ctx.allocate({n}, ctx.statistics());
  s.norm = ctx.allocate({n, d});
  s.attention.qkv = ctx.allocate({n, heads.columns()});
  s.attention.out = ctx.allocate({n, int64_t{heads.query} * heads.width});
  s.attention.log_sum = ctx.allocate({n, heads.query}, ctx.statistics());
  s.sum = ctx.allocate({n, d});
  s.sum_rstd = ctx.allocate({n}, ctx.statistics());
  s.sum_norm = ctx.allocate({n, d});
  s.experts = experts.allocate_saved(ctx, n);
  return s;
}

void Block::forward(Context& ctx, const Tensor& x, const nn::Sequences& sequences,
                    const ops::KvView& cache, const Tensor& out, Saved* saved,
                    const nn::RouterReport* report) const {
  const ArenaScope scope(ctx.arena());
  Saved local;
  if (saved) {
    saved->x = x;
  } else {
    local.norm = local.sum_norm = ctx.allocate(x.shape());  // one after the other
    local.sum = out;
  }
  const Saved& s = saved ? *saved : local;

  ctx.run(ops::RmsNorm{
      .x = x, .weight = attention_norm.value, .y = s.norm, .rstd = s.rstd, .eps = eps});
  {
    // Over a cache its memory is kept meanwhile, so that a device may route while it adds up.
    std::optional<ArenaScope> inner;
    if (!cache) inner.emplace(ctx.arena());
    const Tensor attended = ctx.allocate(x.shape());
    attention.forward(ctx, s.norm, sequences, cache, attended, saved ? &saved->attention : nullptr);
    ctx.run(ops::RmsNorm{.x = attended,
                         .residual = x,
                         .weight = experts_norm.value,
                         .sum = s.sum,
                         .y = s.sum_norm,
                         .rstd = s.sum_rstd,
                         .eps = eps});
  }
  experts.forward(ctx, s.sum_norm, sequences, s.sum, out, saved ? &saved->experts : nullptr,
                  report);
}

void Block::forward_last(Context& ctx, const Tensor& x, const nn::Sequences& sequences,
                         const ops::KvView& cache, const nn::LastTokens& last,
                         const Tensor& out) const {
  const ArenaScope scope(ctx.arena());
  const Tensor norm = ctx.allocate(x.shape());
  ctx.run(ops::RmsNorm{.x = x, .weight = attention_norm.value, .y = norm, .eps = eps});
  const Tensor attended = ctx.allocate({last.count(), x.dim(1)});
  attention.forward(ctx, norm, sequences, cache, attended, nullptr, &last);
  if (last.count() == 0) return;
  const Tensor residual = ctx.allocate(attended.shape());
  ctx.run(ops::Embedding{.table = x, .tokens = last.source, .x = residual});
  const Tensor sum_norm = norm.slice(0, last.count());
  ctx.run(ops::RmsNorm{.x = attended,
                       .residual = residual,
                       .weight = experts_norm.value,
                       .sum = out,
                       .y = sum_norm,
                       .eps = eps});
  experts.forward(ctx, sum_norm, last.sequences, out, out, nullptr, nullptr);
}

void Block::backward(Context& ctx, const Tensor& d, const nn::Sequences& sequences,
                     const Saved& saved, const nn::RouterGradient& losses) const {
  const ArenaScope scope(ctx.arena());
  const Tensor dnorm = ctx.allocate(d.shape());
  // d holds the residual path's gradient throughout; each branch adds its own to it.
  experts.backward(ctx, d, saved.sum_norm, sequences, saved.experts, losses, dnorm);
  ctx.run(ops::RmsNormBackward{.dy = dnorm,
                               .x = saved.sum,
                               .weight = experts_norm.value,
                               .rstd = saved.sum_rstd,
                               .dx = d,
                               .dweight = experts_norm.grad,
                               .accumulate = true});
  attention.backward(ctx, d, saved.norm, sequences, saved.attention, dnorm);
  ctx.run(ops::RmsNormBackward{.dy = dnorm,
                               .x = saved.x,
                               .weight = attention_norm.value,
                               .rstd = saved.rstd,
                               .dx = d,
                               .dweight = attention_norm.grad,
                               .accumulate = true});
}

void Block::for_each_parameter(const nn::ParameterVisitor& visit) {
  visit(attention_norm);
  attention.for_each_parameter(visit);
  visit(experts_norm);
  experts.for_each_parameter(visit);
}

}  // namespace mixtral
