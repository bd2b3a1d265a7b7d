#include "nn/projection.h"

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

}  // namespace mixtral::nn
