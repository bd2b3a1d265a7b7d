#pragma once

#include <memory>
#include <vector>

#include "nn/projection.h"

namespace mixtral::nn {

/// One low-rank update of some output columns of a projection, per group:
///   y[:, begin .. begin + rows) += scale · (dropout(x) Aᵀ) Bᵀ
struct LoraBranch {
  int64_t begin = 0;               // first output column that it changes
  double scale = 1;                // alpha / r, or alpha / sqrt(r) with rsLoRA
  double dropout = 0;              // probability that an element of x is dropped in training
  std::vector<int64_t> untouched;  // groups that are not tuned: their gradients stay zero
  Parameter a;                     // [G, r, I]
  Parameter b;                     // [G, rows, r]

  int64_t rank() const { return a.shape[1]; }
  int64_t rows() const { return b.shape[1]; }
};

/// A projection with low-rank updates (Hu et al. 2021, "LoRA"): owns the base, whose weights stay
/// as they are, and one branch for each part that is tuned (queries and values of a packed QKV;
/// gate and up, each by itself or as one that shares its A).
class Lora : public Projection {
 public:
  Lora(std::unique_ptr<Projection> base, std::vector<LoraBranch> branches);

  int64_t groups() const override { return base_->groups(); }
  int64_t inputs() const override { return base_->inputs(); }
  int64_t outputs() const override { return base_->outputs(); }
  void forward(Context& ctx, const Tensor& x, const Tensor& offsets,
               const Tensor& y) const override;
  void backward_input(Context& ctx, const Tensor& dy, const Tensor& offsets, const Tensor& dx,
                      Write write) const override;
  void backward_weight(Context& ctx, const Tensor& dy, const Tensor& x,
                       const Tensor& offsets) const override;
  /// Cheaper than one after the other: dy B is needed for both.
  void backward(Context& ctx, const Tensor& dy, const Tensor& x, const Tensor& offsets,
                const Tensor& dx, Write write) const override;
  /// The base's parameters, then the branches'.
  void for_each_parameter(const ParameterVisitor& visit) override;

  std::vector<LoraBranch>& branches() { return branches_; }
  const Projection& base() const { return *base_; }
  /// Takes the base out again; this object is then empty.
  std::unique_ptr<Projection> release_base() { return std::move(base_); }
  /// Turns the updates off, so that this is the base alone: DPO's reference, or a comparison.
  void enable(bool enabled) { enabled_ = enabled; }

 private:
  /// dropout(x): x itself outside training, or when nothing is dropped.
  Tensor dropped(Context& ctx, const LoraBranch& branch, const Tensor& x) const;
  /// x Aᵀ, [N, r], and its gradient.
  Tensor narrowed(Context& ctx, const LoraBranch& branch, const Tensor& input,
                  const Tensor& offsets) const;
  Tensor narrow_gradient(Context& ctx, const LoraBranch& branch, const Tensor& dy,
                         const Tensor& offsets) const;
  /// What a branch adds to dx, and its parameters' gradients.
  void add_input(Context& ctx, const LoraBranch& branch, const Tensor& dnarrow,
                 const Tensor& offsets, const Tensor& dx) const;
  void add_weight(Context& ctx, const LoraBranch& branch, const Tensor& dnarrow, const Tensor& dy,
                  const Tensor& x, const Tensor& offsets) const;

  std::unique_ptr<Projection> base_;
  std::vector<LoraBranch> branches_;
  bool enabled_ = true;
};

}  // namespace mixtral::nn
