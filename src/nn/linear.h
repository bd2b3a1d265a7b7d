#pragma once

#include <memory>

#include "nn/projection.h"

namespace mixtral::nn {

/// A weight and nothing more, in any format. Where the backend does not multiply by the format
/// itself (Backend::computes_directly), the weight is first made dense in the arena, except for
/// groups without rows, and the dense product follows. Its results are those of a dense weight with
/// the rounded numbers, to the bit, and it needs room for one weight at a time.
class Linear : public Projection {
 public:
  /// `parameter` is [G, O, I] or [O, I].
  explicit Linear(Parameter parameter)
      : Linear(std::make_shared<Parameter>(std::move(parameter))) {}
  /// Shares a parameter that another module enumerates: the tied vocabulary head.
  explicit Linear(std::shared_ptr<Parameter> parameter, bool owner = true);

  /// Its products never round their operands, whatever the context says: the router's.
  Linear& exact() {
    exact_ = true;
    return *this;
  }

  /// It writes, and its gradients read, the columns of y from `begin` on; y may be wider.
  Linear& at_column(int64_t begin) {
    begin_ = begin;
    return *this;
  }

  int64_t groups() const override { return shape_[0]; }
  int64_t outputs() const override { return shape_[1]; }
  int64_t inputs() const override { return shape_[2]; }
  void forward(Context& ctx, const Tensor& x, const RowGroups& rows,
               const Tensor& y) const override;
  void forward_swiglu(Context& ctx, ops::GroupedMatmulSwiGlu op,
                      const RowGroups& rows) const override;
  void backward_input(Context& ctx, const Tensor& dy, const RowGroups& rows, const Tensor& dx,
                      Write write) const override;
  void backward_weight(Context& ctx, const Tensor& dy, const Tensor& x,
                       const RowGroups& rows) const override;
  /// What `forward` runs.
  ops::GroupedMatmul product(const Context& ctx, const Tensor& x, const RowGroups& rows,
                             const Tensor& y) const;
  Tensor plain_weight() const override;
  bool reads_input() const override { return !parameter_->grad.empty(); }
  void for_each_parameter(const ParameterVisitor& visit) override;

  Parameter& parameter() { return *parameter_; }

 private:
  ops::Weight weight() const;
  ops::Operands operands(const Context& ctx) const {
    return exact_ ? ops::Operands::exact : ctx.operands();
  }
  /// Runs a product by the weight, which `op` lacks.
  template <class Op>
  void multiply(Context& ctx, Op op) const;

  std::shared_ptr<Parameter> parameter_;
  Shape shape_;  // [G, O, I]
  bool owner_;
  bool exact_ = false;
  int64_t begin_ = 0;  // column of y
};

}  // namespace mixtral::nn
