#include "nn/linear.h"

#include <utility>

namespace mixtral::nn {

Linear::Linear(std::shared_ptr<Parameter> parameter, bool owner)
    : parameter_(std::move(parameter)), owner_(owner) {
  const Shape& shape = parameter_->shape;
  CHECK(shape.rank() == 2 || shape.rank() == 3);
  shape_ = shape.rank() == 3 ? shape : Shape{1, shape[0], shape[1]};
  if (parameter_->format || parameter_->fixed) parameter_->trainable = false;
}

ops::Weight Linear::weight() const {
  if (parameter_->packed) return parameter_->packed;
  return parameter_->value.reshape(shape_);
}

Tensor Linear::plain_weight() const {
  return parameter_->packed ? Tensor() : parameter_->value.reshape(shape_);
}

template <class Op>
void Linear::multiply(Context& ctx, Op op) const {
  op.weight = weight();
  op.operands = operands(ctx);
  if (ctx.backend().computes_directly(op)) {
    ctx.run(op);
    return;
  }
  const ArenaScope scope(ctx.arena());
  const Tensor dense = ctx.allocate({groups() * outputs(), inputs()}, parameter_->type);
  ctx.run(ops::Dequantize{.weight = op.weight, .y = dense, .offsets = op.offsets});
  op.weight = dense.reshape(shape_);
  ctx.run(op);
}

ops::GroupedMatmul Linear::product(const Context& ctx, const Tensor& x, const RowGroups& rows,
                                   const Tensor& y) const {
  return {.x = x,
          .weight = weight(),
          .offsets = rows.offsets,
          .y = y,
          .y_begin = begin_,
          .operands = operands(ctx)};
}

void Linear::forward(Context& ctx, const Tensor& x, const RowGroups& rows, const Tensor& y) const {
  multiply(ctx, product(ctx, x, rows, y));
}

void Linear::forward_swiglu(Context& ctx, ops::GroupedMatmulSwiGlu op,
                            const RowGroups& rows) const {
  op.offsets = rows.offsets;
  multiply(ctx, op);
}

void Linear::backward_input(Context& ctx, const Tensor& dy, const RowGroups& rows, const Tensor& dx,
                            Write write) const {
  multiply(ctx, ops::GroupedMatmulInput{.dy = dy,
                                        .weight = {},
                                        .offsets = rows.offsets,
                                        .dx = dx,
                                        .dy_begin = begin_,
                                        .accumulate = write == Write::accumulate});
}

void Linear::backward_weight(Context& ctx, const Tensor& dy, const Tensor& x,
                             const RowGroups& rows) const {
  if (!parameter_->grad) return;
  ctx.run(
      ops::GroupedMatmulWeight{.dy = dy,
                               .x = x,
                               .offsets = rows.offsets,
                               .dweight = parameter_->grad.reshape(shape_),
                               .dy_begin = begin_,
                               .accumulate = !(ctx.fresh_gradients() && parameter_->one_product()),
                               .operands = operands(ctx)});
}

void Linear::for_each_parameter(const ParameterVisitor& visit) {
  if (owner_) visit(*parameter_);
}

}  // namespace mixtral::nn
