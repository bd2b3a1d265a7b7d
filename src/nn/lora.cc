#include "nn/lora.h"

#include <algorithm>
#include <utility>

namespace mixtral::nn {

Lora::Lora(std::unique_ptr<Projection> base, std::vector<LoraBranch> branches)
    : base_(std::move(base)), branches_(std::move(branches)) {
  for (const LoraBranch& branch : branches_) {
    const int64_t all = groups() * branch.places();
    CHECK(branch.a.shape.rank() == 3 && branch.b.shape.rank() == 3);
    CHECK(branch.a.shape[0] == all && branch.b.shape[0] == all);
    CHECK(branch.a.shape[2] == inputs() && branch.b.shape[2] == branch.rank());
    CHECK(branch.begin >= 0 && branch.begin + branch.rows() <= outputs());
  }
}

Lora::Part Lora::part(const LoraBranch& branch, int64_t begin, int64_t end,
                      const Tensor& offsets) const {
  return {.branch = &branch,
          .a = branch.a.value.slice(begin * groups(), end * groups()),
          .b = branch.b.value.slice(begin * groups(), end * groups()),
          .offsets = offsets};
}

template <class Body>
void Lora::for_each_part(const RowGroups& rows, const Body& body) const {
  for (const LoraBranch& branch : branches_) {
    const std::vector<int32_t>& adapters = branch.adapters;
    for (int64_t begin = 0, end; begin < branch.places(); begin = end) {
      const int32_t first = adapters[static_cast<size_t>(begin)];
      end = begin + 1;
      if (first == kNoAdapter) continue;
      if (!rows.sorted()) {
        if (first == rows.adapter) body(part(branch, begin, end, rows.offsets));
        continue;
      }
      const auto follows = [&](int64_t place) {
        return adapters[static_cast<size_t>(place)] == first + place - begin;
      };
      while (end < branch.places() && follows(end)) ++end;
      const Tensor offsets =
          rows.adapter_offsets.slice(first * groups(), (first + end - begin) * groups() + 1);
      body(part(branch, begin, end, offsets));
    }
  }
}

bool Lora::changes(const RowGroups& rows) const {
  return std::ranges::any_of(branches_, [&](const LoraBranch& branch) {
    return rows.sorted() ||
           std::ranges::find(branch.adapters, rows.adapter) != branch.adapters.end();
  });
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

Tensor Lora::narrowed(Context& ctx, const Part& part, const Tensor& input) const {
  const Tensor narrow = ctx.allocate({input.dim(0), part.branch->rank()});
  ctx.run(ops::GroupedMatmul{.x = input,
                             .weight = part.a,
                             .offsets = part.offsets,
                             .y = narrow,
                             .operands = ctx.operands()});
  return narrow;
}

void Lora::add_updates(Context& ctx, const Tensor& x, const RowGroups& rows,
                       const Tensor& y) const {
  if (!changes(rows)) return;
  const ArenaScope scope(ctx.arena());
  Tensor input = x, result = y;
  if (rows.sorted()) {
    input = ctx.allocate(x.shape(), x.dtype());
    result = ctx.allocate(y.shape(), y.dtype());
    ctx.run(ops::GatherRows{.x = x, .source = rows.order, .y = input});
    ctx.run(ops::GatherRows{.x = y, .source = rows.order, .y = result});
  }
  for_each_part(rows, [&](const Part& part) {
    const ArenaScope inner(ctx.arena());
    const Tensor narrow = narrowed(ctx, part, dropped(ctx, *part.branch, input));
    ctx.run(ops::GroupedMatmul{.x = narrow,
                               .weight = part.b,
                               .offsets = part.offsets,
                               .y = result,
                               .y_begin = part.branch->begin,
                               .scale = part.branch->scale,
                               .accumulate = true,
                               .operands = ctx.operands()});
  });
  if (rows.sorted()) ctx.run(ops::GatherRows{.x = result, .source = rows.place, .y = y});
}

void Lora::forward(Context& ctx, const Tensor& x, const RowGroups& rows, const Tensor& y) const {
  base_->forward(ctx, x, rows, y);
  add_updates(ctx, x, rows, y);
}

void Lora::forward_swiglu(Context& ctx, ops::GroupedMatmulSwiGlu op, const RowGroups& rows) const {
  if (!changes(rows)) return base_->forward_swiglu(ctx, op, rows);
  Projection::forward_swiglu(ctx, op, rows);
}

Tensor Lora::narrow_gradient(Context& ctx, const Part& part, const Tensor& dy) const {
  const Tensor dnarrow = ctx.allocate({dy.dim(0), part.branch->rank()});
  ctx.run(ops::GroupedMatmulInput{.dy = dy,
                                  .weight = part.b,
                                  .offsets = part.offsets,
                                  .dx = dnarrow,
                                  .dy_begin = part.branch->begin,
                                  .scale = part.branch->scale,
                                  .operands = ctx.operands()});
  return dnarrow;
}

void Lora::add_input(Context& ctx, const Part& part, const Tensor& dnarrow,
                     const Tensor& dx) const {
  const LoraBranch& branch = *part.branch;
  const bool drops = branch.dropout > 0 && ctx.dropout_seed();
  const Tensor dinput = drops ? ctx.allocate(dx.shape()) : dx;
  ctx.run(ops::GroupedMatmulInput{.dy = dnarrow,
                                  .weight = part.a,
                                  .offsets = part.offsets,
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

void Lora::add_weight(Context& ctx, const Part& part, const Tensor& dnarrow, const Tensor& dy,
                      const Tensor& x) const {
  const LoraBranch& branch = *part.branch;
  CHECK(branch.places() == 1 || !branch.a.grad, "an adapter that is trained stands alone");
  const Tensor input = dropped(ctx, branch, x);  // the same elements as in forward
  if (branch.b.grad) {
    // x Aᵀ is computed again: that costs about 1% of a step, and so no projection has to keep
    // anything between its passes.
    const Tensor narrow = narrowed(ctx, part, input);
    ctx.run(ops::GroupedMatmulWeight{.dy = dy,
                                     .x = narrow,
                                     .offsets = part.offsets,
                                     .dweight = branch.b.grad,
                                     .dy_begin = branch.begin,
                                     .scale = branch.scale,
                                     .operands = ctx.operands()});
  }
  if (branch.a.grad) {
    ctx.run(ops::GroupedMatmulWeight{.dy = dnarrow,
                                     .x = input,
                                     .offsets = part.offsets,
                                     .dweight = branch.a.grad,
                                     .operands = ctx.operands()});
  }
  for (const int64_t group : branch.untouched) {
    if (branch.a.grad) ctx.run(ops::Fill{.x = branch.a.grad[group]});
    if (branch.b.grad) ctx.run(ops::Fill{.x = branch.b.grad[group]});
  }
}

void Lora::backward_input(Context& ctx, const Tensor& dy, const RowGroups& rows, const Tensor& dx,
                          Write write) const {
  CHECK(!rows.sorted(), "gradients are for one adapter");
  base_->backward_input(ctx, dy, rows, dx, write);
  for_each_part(rows, [&](const Part& part) {
    const ArenaScope scope(ctx.arena());
    add_input(ctx, part, narrow_gradient(ctx, part, dy), dx);
  });
}

void Lora::backward_weight(Context& ctx, const Tensor& dy, const Tensor& x,
                           const RowGroups& rows) const {
  CHECK(!rows.sorted(), "gradients are for one adapter");
  base_->backward_weight(ctx, dy, x, rows);
  for_each_part(rows, [&](const Part& part) {
    const ArenaScope scope(ctx.arena());
    add_weight(ctx, part, narrow_gradient(ctx, part, dy), dy, x);
  });
}

void Lora::backward(Context& ctx, const Tensor& dy, const Tensor& x, const RowGroups& rows,
                    const Tensor& dx, Write write) const {
  CHECK(!rows.sorted(), "gradients are for one adapter");
  base_->backward(ctx, dy, x, rows, dx, write);
  for_each_part(rows, [&](const Part& part) {
    const ArenaScope scope(ctx.arena());
    const Tensor dnarrow = narrow_gradient(ctx, part, dy);
    add_weight(ctx, part, dnarrow, dy, x);
    if (dx) add_input(ctx, part, dnarrow, dx);
  });
}

void Lora::for_each_parameter(const ParameterVisitor& visit) {
  base_->for_each_parameter(visit);
  for (LoraBranch& branch : branches_) {
    visit(branch.a);
    visit(branch.b);
  }
}

}  // namespace mixtral::nn
