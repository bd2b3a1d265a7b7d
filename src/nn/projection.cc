#include "nn/projection.h"

#include <utility>

namespace mixtral::nn {

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

void Dense::backward(Context& ctx, const Tensor& dy, const Tensor& x, const Tensor& offsets,
                     const Tensor& dx, Write write) const {
  if (dx) {
    ctx.run(ops::GroupedMatmulInput{.dy = dy,
                                    .weight = weight(),
                                    .offsets = offsets,
                                    .dx = dx,
                                    .accumulate = write == Write::accumulate,
                                    .operands = operands(ctx)});
  }
  if (parameter_->grad) {
    ctx.run(ops::GroupedMatmulWeight{
        .dy = dy,
        .x = x,
        .offsets = offsets,
        .dweight = parameter_->grad.reshape(shape_),
        .accumulate = !(ctx.fresh_gradients() && parameter_->one_product()),
        .operands = operands(ctx)});
  }
}

void Dense::for_each_parameter(const ParameterVisitor& visit) {
  if (owner_) visit(*parameter_);
}

}  // namespace mixtral::nn
