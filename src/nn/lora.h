#pragma once

#include <memory>
#include <vector>

#include "nn/projection.h"

namespace mixtral::nn {

/// Low-rank updates of the same output columns of a projection, an adapter each, per group:
///   y[:, begin .. begin + rows) += scale · (dropout(x) Aᵀ) Bᵀ
/// Those of S adapters stand one after another, so that one product serves rows of all of them.
struct LoraBranch {
  int64_t begin = 0;               // first output column that they change
  double scale = 1;                // alpha / r, or alpha / sqrt(r) with rsLoRA
  double dropout = 0;              // probability that an element of x is dropped in training
  std::vector<int64_t> untouched;  // groups that are not tuned: their gradients stay zero
  Parameter a;                     // [S·G, r, I]
  Parameter b;                     // [S·G, rows, r]
  std::vector<int32_t> adapters{kOwnAdapter};  // [S]: whose each place is; kNoAdapter: it is free

  int64_t rank() const { return a.shape[1]; }
  int64_t rows() const { return b.shape[1]; }
  int64_t places() const { return static_cast<int64_t>(adapters.size()); }
};

/// A projection with low-rank updates (Hu et al. 2021, "LoRA"): owns the base, whose weights stay
/// as they are, and one branch for each part that is tuned (queries and values of a packed QKV;
/// gate and up, each by itself or as one that shares its A) and each rank and scale. A row gets the
/// updates of its adapter, and no others.
class Lora : public Projection {
 public:
  Lora(std::unique_ptr<Projection> base, std::vector<LoraBranch> branches);

  int64_t groups() const override { return base_->groups(); }
  int64_t inputs() const override { return base_->inputs(); }
  int64_t outputs() const override { return base_->outputs(); }
  void forward(Context& ctx, const Tensor& x, const RowGroups& rows,
               const Tensor& y) const override;
  void forward_swiglu(Context& ctx, ops::GroupedMatmulSwiGlu op,
                      const RowGroups& rows) const override;
  void backward_input(Context& ctx, const Tensor& dy, const RowGroups& rows, const Tensor& dx,
                      Write write) const override;
  void backward_weight(Context& ctx, const Tensor& dy, const Tensor& x,
                       const RowGroups& rows) const override;
  /// Cheaper than one after the other: dy B is needed for both.
  void backward(Context& ctx, const Tensor& dy, const Tensor& x, const RowGroups& rows,
                const Tensor& dx, Write write) const override;
  /// The base's parameters, then the branches'.
  void for_each_parameter(const ParameterVisitor& visit) override;

  /// May be added to and taken from between passes.
  std::vector<LoraBranch>& branches() { return branches_; }
  const Projection& base() const { return *base_; }
  /// Takes the base out again; this object is then empty.
  std::unique_ptr<Projection> release_base() { return std::move(base_); }

 private:
  /// What a product takes of a branch: places of consecutive adapters, and their rows.
  struct Part {
    const LoraBranch* branch = nullptr;
    Tensor a, b;     // [n·G, r, I], [n·G, rows, r]
    Tensor offsets;  // [n·G+1], or empty
  };
  Part part(const LoraBranch& branch, int64_t begin, int64_t end, const Tensor& offsets) const;
  /// Calls body(Part) for each product that the rows need.
  template <class Body>
  void for_each_part(const RowGroups& rows, const Body& body) const;
  bool changes(const RowGroups& rows) const;
  void add_updates(Context& ctx, const Tensor& x, const RowGroups& rows, const Tensor& y) const;

  /// dropout(x): x itself outside training, or when nothing is dropped.
  Tensor dropped(Context& ctx, const LoraBranch& branch, const Tensor& x) const;
  /// x Aᵀ, [N, r], and its gradient.
  Tensor narrowed(Context& ctx, const Part& part, const Tensor& input) const;
  Tensor narrow_gradient(Context& ctx, const Part& part, const Tensor& dy) const;
  /// What a branch adds to dx, and its parameters' gradients.
  void add_input(Context& ctx, const Part& part, const Tensor& dnarrow, const Tensor& dx) const;
  void add_weight(Context& ctx, const Part& part, const Tensor& dnarrow, const Tensor& dy,
                  const Tensor& x) const;

  std::unique_ptr<Projection> base_;
  std::vector<LoraBranch> branches_;
};

}  // namespace mixtral::nn
