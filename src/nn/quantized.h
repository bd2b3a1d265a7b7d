#pragma once

#include "nn/projection.h"

namespace mixtral::nn {

/// A frozen weight that is kept in few bits (ops/quantize.h): the base of QLoRA (Dettmers et al.
/// 2023), under nn::Lora. Both passes turn the whole weight back into its type, in the context's
/// arena, and multiply by that: a Dense with the rounded weight, in a half or a quarter of 16 bits'
/// memory, for one more pass over the weight.
class Quantized : public Projection {
 public:
  /// `parameter` is [G, O, I] or [O, I]; it gets its codes and scales from a ParameterStore.
  Quantized(Parameter parameter, ops::Quantization quantization);

  int64_t groups() const override { return shape_[0]; }
  int64_t outputs() const override { return shape_[1]; }
  int64_t inputs() const override { return shape_[2]; }
  void forward(Context& ctx, const Tensor& x, const Tensor& offsets,
               const Tensor& y) const override;
  void forward_swiglu(Context& ctx, ops::GroupedMatmulSwiGlu op) const override;
  void backward_input(Context& ctx, const Tensor& dy, const Tensor& offsets, const Tensor& dx,
                      Write write) const override;
  /// Nothing: a rounded weight has no gradient.
  void backward_weight(Context&, const Tensor&, const Tensor&, const Tensor&) const override {}
  bool reads_input() const override { return false; }
  void for_each_parameter(const ParameterVisitor& visit) override { visit(parameter_); }

 private:
  /// The weight [G, O, I], in the arena; only of groups that have rows, where a backend can tell.
  Tensor weight(Context& ctx, const Tensor& offsets) const;

  Parameter parameter_;
  Shape shape_;  // [G, O, I]
};

}  // namespace mixtral::nn
