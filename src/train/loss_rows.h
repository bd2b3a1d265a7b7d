#pragma once

#include "model/loss.h"
#include "train/criterion.h"

namespace mixtral {

/// Where a criterion's results stand on the device until they are read: rows of loss totals, and
/// what the routers did with the last micro-batch.
class LossRows {
 public:
  LossRows(Context& ctx, const ModelConfig& config, int64_t rows);

  LossTotals totals(int64_t row) const;
  void clear(Context& ctx, int64_t row) const;
  const Tensor& label_scale() const { return label_scale_; }  // [1] statistics
  const Mixtral::RouterReports& reports() const { return reports_; }
  /// Waits for the device.
  RouterFigures read_routers(Context& ctx) const;

 private:
  Buffer buffer_;
  Tensor cross_entropy_;  // [rows] f64
  Tensor router_;         // [rows, 2] statistics
  Tensor label_scale_;
  Mixtral::RouterReports reports_;
};

}  // namespace mixtral
