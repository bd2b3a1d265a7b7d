#pragma once

#include <memory>
#include <vector>

#include "nn/expert_store.h"
#include "nn/linear.h"

namespace mixtral::nn {

/// A projection of a layer's experts whose weights are in memory one by one, as an ExpertStore has
/// them: y = x @ W[e]ᵀ for the rows of each expert, in the store's order, once the store was told
/// what the layer needs. Experts are computed one after another, each as Linear and Stacked do. On
/// a CPU a product gets the rows of one expert: a row's bits do not depend on its batch. Elsewhere
/// a product gets all rows, and offsets that select those of one expert: so the backend chooses the
/// kernel that it chooses for all experts at once. The results equal those of experts that are all
/// in memory. For inference; it has no parameters to visit.
class StreamedExperts : public Projection {
 public:
  /// Several parameters stand side by side, as in Stacked. Each is [E, O, I], says formats and
  /// names, and gets no memory; those without a format are kept in `type`. One that is `planned`
  /// needs no store, and issues the products of one expert.
  StreamedExperts(int64_t layer, ExpertProduct product, std::vector<Parameter> parameters,
                  Dtype type, bool planned);

  /// The store must outlive its use.
  void attach(ExpertStore& store) { store_ = &store; }
  int64_t layer() const { return layer_; }
  ExpertProduct product() const { return product_; }
  const std::vector<Parameter>& parameters() const { return parameters_; }

  int64_t groups() const override { return parameters_.front().shape[0]; }
  int64_t outputs() const override { return outputs_; }
  int64_t inputs() const override { return parameters_.front().shape[2]; }
  void forward(Context& ctx, const Tensor& x, const RowGroups& rows,
               const Tensor& y) const override;
  void forward_swiglu(Context& ctx, ops::GroupedMatmulSwiGlu op,
                      const RowGroups& rows) const override;
  void backward_input(Context& ctx, const Tensor& dy, const RowGroups& rows, const Tensor& dx,
                      Write write) const override;
  void backward_weight(Context& ctx, const Tensor& dy, const Tensor& x,
                       const RowGroups& rows) const override;
  bool reads_input() const override { return false; }
  void for_each_parameter(const ParameterVisitor&) override {}

 private:
  /// Calls body(e) with each expert's weights in one_; once, where nothing but memory counts.
  template <class Body>
  void for_each_expert(const Tensor& x, const Body& body) const;
  void set_weights(std::span<const ops::Weight> weights) const;

  ExpertStore* store_ = nullptr;
  int64_t layer_;
  ExpertProduct product_;
  bool planned_;
  std::vector<Parameter> parameters_;  // of all experts
  // Of the expert that is computed; its memory is lent by the store.
  std::vector<std::unique_ptr<Linear>> one_;
  int64_t outputs_ = 0;
};

}  // namespace mixtral::nn
