#include "nn/lora.h"

#include <utility>

namespace mixtral::nn {

Lora::Lora(std::unique_ptr<Projection> base, std::vector<LoraBranch> branches)
    : base_(std::move(base)), branches_(std::move(branches)) {
  for (const LoraBranch& branch : branches_) {
    CHECK(branch.a.shape.rank() == 3 && branch.b.shape.rank() == 3);
    CHECK(branch.a.shape[0] == groups() && branch.b.shape[0] == groups());
    CHECK(branch.a.shape[2] == inputs() && branch.b.shape[2] == branch.rank());
    CHECK(branch.begin >= 0 && branch.begin + branch.rows() <= outputs());
  }
}

Tensor Lora::dropped(Context& ctx, const LoraBranch& branch, const Tensor& x) const {
  if (branch.dropout <= 0 || !ctx.dropout_seed()) return x;
  const Tensor kept = ctx.allocate(x.shape());
  ctx.run(ops::Dropout{.x = x,
                       .y = kept,
                       .seed = ctx.dropout_seed(),
                       .probability = branch.dropout,
                       .stream = name_hash(branch.a.parts.front().name)});
  return kept;
}

Tensor Lora::narrowed(Context& ctx, const LoraBranch& branch, const Tensor& input,
                      const Tensor& offsets) const {
  const Tensor narrow = ctx.allocate({input.dim(0), branch.rank()});
  ctx.run(ops::GroupedMatmul{.x = input,
                             .weight = branch.a.value,
                             .offsets = offsets,
                             .y = narrow,
                             .operands = ctx.operands()});
  return narrow;
}

void Lora::forward(Context& ctx, const Tensor& x, const Tensor& offsets, const Tensor& y) const {
  base_->forward(ctx, x, offsets, y);
  if (!enabled_) return;
  for (const LoraBranch& branch : branches_) {
    const ArenaScope scope(ctx.arena());
    const Tensor narrow = narrowed(ctx, branch, dropped(ctx, branch, x), offsets);
    ctx.run(ops::GroupedMatmul{.x = narrow,
                               .weight = branch.b.value,
                               .offsets = offsets,
                               .y = y,
                               .y_begin = branch.begin,
                               .scale = branch.scale,
                               .accumulate = true,
                               .operands = ctx.operands()});
  }
}

Tensor Lora::narrow_gradient(Context& ctx, const LoraBranch& branch, const Tensor& dy,
                             const Tensor& offsets) const {
  const Tensor dnarrow = ctx.allocate({dy.dim(0), branch.rank()});
  ctx.run(ops::GroupedMatmulInput{.dy = dy,
                                  .weight = branch.b.value,
                                  .offsets = offsets,
                                  .dx = dnarrow,
                                  .dy_begin = branch.begin,
                                  .scale = branch.scale,
                                  .operands = ctx.operands()});
  return dnarrow;
}

void Lora::add_input(Context& ctx, const LoraBranch& branch, const Tensor& dnarrow,
                     const Tensor& offsets, const Tensor& dx) const {
  const bool drops = branch.dropout > 0 && ctx.dropout_seed();
  const Tensor dinput = drops ? ctx.allocate(dx.shape()) : dx;
  ctx.run(ops::GroupedMatmulInput{.dy = dnarrow,
                                  .weight = branch.a.value,
                                  .offsets = offsets,
                                  .dx = dinput,
                                  .accumulate = !drops,
                                  .operands = ctx.operands()});
  if (!drops) return;
  ctx.run(ops::Dropout{.x = dinput,
                       .y = dinput,
                       .seed = ctx.dropout_seed(),
                       .probability = branch.dropout,
                       .stream = name_hash(branch.a.parts.front().name)});
  ctx.run(ops::AddScaled{.x = dinput, .y = dx});
}

void Lora::add_weight(Context& ctx, const LoraBranch& branch, const Tensor& dnarrow,
                      const Tensor& dy, const Tensor& x, const Tensor& offsets) const {
  const Tensor input = dropped(ctx, branch, x);  // the same elements as in forward
  if (branch.b.grad) {
    // x Aᵀ is computed again: that costs about 1% of a step, and so no projection has to keep
    // anything between its passes.
    const Tensor narrow = narrowed(ctx, branch, input, offsets);
    ctx.run(ops::GroupedMatmulWeight{.dy = dy,
                                     .x = narrow,
                                     .offsets = offsets,
                                     .dweight = branch.b.grad,
                                     .dy_begin = branch.begin,
                                     .scale = branch.scale,
                                     .operands = ctx.operands()});
  }
  if (branch.a.grad) {
    ctx.run(ops::GroupedMatmulWeight{.dy = dnarrow,
                                     .x = input,
                                     .offsets = offsets,
                                     .dweight = branch.a.grad,
                                     .operands = ctx.operands()});
  }
  for (const int64_t group : branch.untouched) {
    if (branch.a.grad) ctx.run(ops::Fill{.x = branch.a.grad[group]});
    if (branch.b.grad) ctx.run(ops::Fill{.x = branch.b.grad[group]});
  }
}

void Lora::backward_input(Context& ctx, const Tensor& dy, const Tensor& offsets, const Tensor& dx,
                          Write write) const {
  base_->backward_input(ctx, dy, offsets, dx, write);
  if (!enabled_) return;
  for (const LoraBranch& branch : branches_) {
    const ArenaScope scope(ctx.arena());
    add_input(ctx, branch, narrow_gradient(ctx, branch, dy, offsets), offsets, dx);
  }
}

void Lora::backward_weight(Context& ctx, const Tensor& dy, const Tensor& x,
                           const Tensor& offsets) const {
  base_->backward_weight(ctx, dy, x, offsets);
  if (!enabled_) return;
  for (const LoraBranch& branch : branches_) {
    const ArenaScope scope(ctx.arena());
    add_weight(ctx, branch, narrow_gradient(ctx, branch, dy, offsets), dy, x, offsets);
  }
}

void Lora::backward(Context& ctx, const Tensor& dy, const Tensor& x, const Tensor& offsets,
                    const Tensor& dx, Write write) const {
  base_->backward(ctx, dy, x, offsets, dx, write);
  if (!enabled_) return;
  for (const LoraBranch& branch : branches_) {
    const ArenaScope scope(ctx.arena());
    const Tensor dnarrow = narrow_gradient(ctx, branch, dy, offsets);
    add_weight(ctx, branch, dnarrow, dy, x, offsets);
    if (dx) add_input(ctx, branch, dnarrow, offsets, dx);
  }
}

void Lora::for_each_parameter(const ParameterVisitor& visit) {
  base_->for_each_parameter(visit);
  for (LoraBranch& branch : branches_) {
    visit(branch.a);
    visit(branch.b);
  }
}

}  // namespace mixtral::nn
