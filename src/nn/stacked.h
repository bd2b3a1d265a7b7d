#pragma once

#include <memory>
#include <vector>

#include "nn/linear.h"

namespace mixtral::nn {

/// Several weights whose outputs stand side by side: queries, keys and values, or gate and up,
/// where files keep them in different formats. Its results are those of one weight with all rows.
class Stacked : public Projection {
 public:
  /// Each parameter is [G, O, I] or [O, I], with the same groups and inputs.
  explicit Stacked(std::vector<Parameter> parameters);

  int64_t groups() const override { return parts_.front()->groups(); }
  int64_t outputs() const override { return outputs_; }
  int64_t inputs() const override { return parts_.front()->inputs(); }
  void forward(Context& ctx, const Tensor& x, const RowGroups& rows,
               const Tensor& y) const override;
  void backward_input(Context& ctx, const Tensor& dy, const RowGroups& rows, const Tensor& dx,
                      Write write) const override;
  void backward_weight(Context& ctx, const Tensor& dy, const Tensor& x,
                       const RowGroups& rows) const override;
  bool reads_input() const override;
  void for_each_parameter(const ParameterVisitor& visit) override;

 private:
  std::vector<std::unique_ptr<Linear>> parts_;
  int64_t outputs_ = 0;
};

}  // namespace mixtral::nn
