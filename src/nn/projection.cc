#include "nn/projection.h"

namespace mixtral::nn {

void Projection::forward_swiglu(Context& ctx, ops::GroupedMatmulSwiGlu op,
                                const RowGroups& rows) const {
  forward(ctx, op.x, rows, op.gate_up);
  ctx.run(op.activation());
}

void Projection::backward(Context& ctx, const Tensor& dy, const Tensor& x, const RowGroups& rows,
                          const Tensor& dx, Write write) const {
  if (dx) backward_input(ctx, dy, rows, dx, write);
  backward_weight(ctx, dy, x, rows);
}

}  // namespace mixtral::nn
