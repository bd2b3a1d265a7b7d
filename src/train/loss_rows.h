#pragma once

#include <vector>

#include "model/loss.h"
#include "train/criterion.h"

namespace mixtral {

/// Where a criterion's results stand on the device until they are read: a row for each step that
/// was not read yet, with its loss totals, what the routers did with its last micro-batch, and the
/// norm of its gradients. A row is one piece of memory: cleared, kept and read by one copy.
class LossRows {
 public:
  LossRows(Context& ctx, const ModelConfig& config, int64_t rows);

  LossTotals totals(int64_t row) const { return parts(row).totals; }
  Mixtral::RouterReports reports(int64_t row) const { return parts(row).reports; }
  Tensor squared_norm(int64_t row) const { return parts(row).squared_norm; }
  /// Sets a row to zeros.
  void clear(Context& ctx, int64_t row) const;
  /// Copies a row to another one.
  void copy(Context& ctx, int64_t from, int64_t to) const;

  /// Waits for a row; what follows is of the row that was fetched last.
  void fetch(Context& ctx, int64_t row, Wait wait);
  LossValues losses(const Objective& objective, int64_t labels) const;
  RouterFigures routers() const;
  double squared_norm() const;

 private:
  struct Parts {
    LossTotals totals;
    Mixtral::RouterReports reports;
    Tensor squared_norm;  // [1] f64
    int64_t size = 0;     // of them all, in bytes
  };
  Parts parts_at(void* base) const;
  Parts parts(int64_t row) const { return parts_at(bytes_[row].data()); }

  Shape per_expert_, per_layer_;
  Dtype statistics_;
  Buffer buffer_;
  Tensor bytes_;  // [rows, size] u8
  std::vector<uint8_t> fetched_;
};

}  // namespace mixtral
