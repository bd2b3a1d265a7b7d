#include "nn/quantized.h"

#include <utility>

namespace mixtral::nn {

Quantized::Quantized(Parameter parameter, ops::Quantization quantization)
    : parameter_(std::move(parameter)) {
  const Shape& shape = parameter_.shape;
  CHECK(shape.rank() == 2 || shape.rank() == 3);
  shape_ = shape.rank() == 3 ? shape : Shape{1, shape[0], shape[1]};
  parameter_.quantization = quantization;
  parameter_.trainable = false;
}

Tensor Quantized::weight(Context& ctx, const Tensor& offsets) const {
  const Tensor weight = ctx.allocate({groups() * outputs(), inputs()}, parameter_.type);
  ctx.run(ops::Dequantize{.codes = parameter_.codes,
                          .scales = parameter_.scales,
                          .y = weight,
                          .quantization = *parameter_.quantization,
                          .offsets = offsets});
  return weight.reshape(shape_);
}

void Quantized::forward(Context& ctx, const Tensor& x, const Tensor& offsets,
                        const Tensor& y) const {
  const ArenaScope scope(ctx.arena());
  ctx.run(ops::GroupedMatmul{.x = x,
                             .weight = weight(ctx, offsets),
                             .offsets = offsets,
                             .y = y,
                             .operands = ctx.operands()});
}

void Quantized::forward_swiglu(Context& ctx, ops::GroupedMatmulSwiGlu op) const {
  const ArenaScope scope(ctx.arena());
  op.weight = weight(ctx, op.offsets);
  op.operands = ctx.operands();
  ctx.run(op);
}

void Quantized::backward_input(Context& ctx, const Tensor& dy, const Tensor& offsets,
                               const Tensor& dx, Write write) const {
  const ArenaScope scope(ctx.arena());
  ctx.run(ops::GroupedMatmulInput{.dy = dy,
                                  .weight = weight(ctx, offsets),
                                  .offsets = offsets,
                                  .dx = dx,
                                  .accumulate = write == Write::accumulate,
                                  .operands = ctx.operands()});
}

}  // namespace mixtral::nn
