#include "nn/projection.h"

#include <utility>

namespace mixtral::nn {

void Projection::forward_swiglu(Context& ctx, ops::GroupedMatmulSwiGlu op) const {
  forward(ctx, op.x, op.offsets, op.gate_up);
  ctx.run(op.activation());
}

void Projection::backward(Context& ctx, const Tensor& dy, const Tensor& x, const Tensor& offsets,
                          const Tensor& dx, Write write) const {
  if (dx) backward_input(ctx, dy, offsets, dx, write);
  backward_weight(ctx, dy, x, offsets);
}

Dense::Dense(std::shared_ptr<Parameter> parameter, bool owner)
    : parameter_(std::move(parameter)), owner_(owner) {
  const Shape& shape = parameter_->shape;
  CHECK(shape.rank() == 2 || shape.rank() == 3);
  shape_ = shape.rank() == 3 ? shape : Shape{1, shape[0], shape[1]};
}

void Dense::forward(Context& ctx, const Tensor& x, const Tensor& offsets, const Tensor& y) const {
  ctx.run(ops::GroupedMatmul{
      .x = x, .weight = weight(), .offsets = offsets, .y = y, .operands = operands(ctx)});
}

void Dense::forward_swiglu(Context& ctx, ops::GroupedMatmulSwiGlu op) const {
  op.weight = weight();
  op.operands = operands(ctx);
  ctx.run(op);
}

void Dense::backward_input(Context& ctx, const Tensor& dy, const Tensor& offsets, const Tensor& dx,
                           Write write) const {
  ctx.run(ops::GroupedMatmulInput{.dy = dy,
                                  .weight = weight(),
                                  .offsets = offsets,
                                  .dx = dx,
                                  .accumulate = write == Write::accumulate,
                                  .operands = operands(ctx)});
}

void Dense::backward_weight(Context& ctx, const Tensor& dy, const Tensor& x,
                            const Tensor& offsets) const {
  if (!parameter_->grad) return;
  ctx.run(
      ops::GroupedMatmulWeight{.dy = dy,
                               .x = x,
                               .offsets = offsets,
                               .dweight = parameter_->grad.reshape(shape_),
                               .accumulate = !(ctx.fresh_gradients() && parameter_->one_product()),
                               .operands = operands(ctx)});
}

void Dense::for_each_parameter(const ParameterVisitor& visit) {
  if (owner_) visit(*parameter_);
}

}  // namespace mixtral::nn
