#pragma once

#include <memory>

#include "nn/parameter.h"
#include "nn/sequences.h"

namespace mixtral::nn {

/// Whether a result replaces what a tensor held, or is added to it.
enum class Write { assign, accumulate };

/// A linear map for each group of rows, y = x @ W[g]ᵀ. Attention, router, experts and the
/// vocabulary head are made of it, and need not know whether it is a weight alone (Linear) or one
/// with LoRA.
class Projection {
 public:
  virtual ~Projection() = default;

  virtual int64_t groups() const = 0;   // G
  virtual int64_t inputs() const = 0;   // I
  virtual int64_t outputs() const = 0;  // O

  /// y[N, O] = x[N, I] @ Wᵀ, with the updates of the rows' adapters where there are any.
  virtual void forward(Context& ctx, const Tensor& x, const RowGroups& rows,
                       const Tensor& y) const = 0;
  /// The product of gate and up, and SwiGLU after it. `op` lacks weight and offsets.
  virtual void forward_swiglu(Context& ctx, ops::GroupedMatmulSwiGlu op,
                              const RowGroups& rows) const;

  // Gradients. All rows use one adapter.

  /// dx[N, I] = dy[N, O] @ W, assigned or accumulated.
  virtual void backward_input(Context& ctx, const Tensor& dy, const RowGroups& rows,
                              const Tensor& dx, Write write) const = 0;
  /// The gradients of this projection's parameters accumulate (but see Context::fresh_gradients).
  /// `x` is what forward was given.
  virtual void backward_weight(Context& ctx, const Tensor& dy, const Tensor& x,
                               const RowGroups& rows) const = 0;
  /// Both gradients; only the parameters' where dx is empty.
  virtual void backward(Context& ctx, const Tensor& dy, const Tensor& x, const RowGroups& rows,
                        const Tensor& dx, Write write) const;

  /// The values [G, O, I] when the map is a dense weight and nothing more; empty otherwise.
  virtual Tensor plain_weight() const { return {}; }

  /// Whether backward reads its x. A frozen weight's backward does not, and x may then be empty.
  virtual bool reads_input() const { return true; }

  virtual void for_each_parameter(const ParameterVisitor& visit) = 0;
};

}  // namespace mixtral::nn
