#pragma once

#include <memory>

#include "nn/parameter.h"
#include "ops/context.h"

namespace mixtral::nn {

/// Whether a result replaces what a tensor held, or is added to it.
enum class Write { assign, accumulate };

/// A linear map per group of rows, y = x @ W[g]ᵀ: what attention, router, experts and the
/// vocabulary head are made of. Dense, LoRA and quantized weights are kinds of it, so nothing else
/// needs to know which one it has.
class Projection {
 public:
  virtual ~Projection() = default;

  virtual int64_t groups() const = 0;   // G
  virtual int64_t inputs() const = 0;   // I
  virtual int64_t outputs() const = 0;  // O

  /// y[N, O] = x[N, I] @ Wᵀ. `offsets` [G+1] i32 says which rows are which group's; empty if G = 1.
  virtual void forward(Context& ctx, const Tensor& x, const Tensor& offsets,
                       const Tensor& y) const = 0;
  /// The same and SwiGLU after it, for gate and up: `op` lacks the weight.
  virtual void forward_swiglu(Context& ctx, ops::GroupedMatmulSwiGlu op) const;

  /// dx[N, I] = dy[N, O] @ W, assigned or accumulated.
  virtual void backward_input(Context& ctx, const Tensor& dy, const Tensor& offsets,
                              const Tensor& dx, Write write) const = 0;
  /// The gradients of this projection's parameters accumulate (but see Context::fresh_gradients).
  /// `x` is what forward was given.
  virtual void backward_weight(Context& ctx, const Tensor& dy, const Tensor& x,
                               const Tensor& offsets) const = 0;
  /// Both (the first unless dx is empty).
  virtual void backward(Context& ctx, const Tensor& dy, const Tensor& x, const Tensor& offsets,
                        const Tensor& dx, Write write) const;

  /// The weight [G, O, I] when the map is that and nothing more; empty otherwise. For fused ops.
  virtual Tensor plain_weight() const { return {}; }

  /// Whether backward reads its x; a frozen weight's does not, and x may then be empty.
  virtual bool reads_input() const { return true; }

  virtual void for_each_parameter(const ParameterVisitor& visit) = 0;
};

/// A plain weight. `operands` overrides how products round (the router is always exact).
class Dense : public Projection {
 public:
  explicit Dense(Parameter parameter) : Dense(std::make_shared<Parameter>(std::move(parameter))) {}
  /// Shares a parameter that another module enumerates: the tied vocabulary head.
  explicit Dense(std::shared_ptr<Parameter> parameter, bool owner = true);

  Dense& exact() {
    exact_ = true;
    return *this;
  }

  int64_t groups() const override { return shape_[0]; }
  int64_t outputs() const override { return shape_[1]; }
  int64_t inputs() const override { return shape_[2]; }
  void forward(Context& ctx, const Tensor& x, const Tensor& offsets,
               const Tensor& y) const override;
  void forward_swiglu(Context& ctx, ops::GroupedMatmulSwiGlu op) const override;
  void backward_input(Context& ctx, const Tensor& dy, const Tensor& offsets, const Tensor& dx,
                      Write write) const override;
  void backward_weight(Context& ctx, const Tensor& dy, const Tensor& x,
                       const Tensor& offsets) const override;
  Tensor plain_weight() const override { return weight(); }
  bool reads_input() const override { return !parameter_->grad.empty(); }
  void for_each_parameter(const ParameterVisitor& visit) override;

  Parameter& parameter() { return *parameter_; }

 private:
  Tensor weight() const { return parameter_->value.reshape(shape_); }
  ops::Operands operands(const Context& ctx) const {
    return exact_ ? ops::Operands::exact : ctx.operands();
  }

  std::shared_ptr<Parameter> parameter_;
  Shape shape_;  // [G, O, I]
  bool owner_;
  bool exact_ = false;
};

}  // namespace mixtral::nn
