#pragma once

#include "model/loss.h"
#include "train/criterion.h"
#include "train/loss_rows.h"

namespace mixtral {

/// Next-token prediction: the mean cross-entropy over the labels, plus the routers' losses.
class LanguageModelCriterion : public Criterion {
 public:
  static constexpr int64_t kRows = 64;

  struct Settings {
    Objective objective;
    Recompute recompute;
  };

  LanguageModelCriterion(Context& ctx, const Mixtral& model, const Settings& settings);

  int64_t weight(const HostBatch& batch) const override { return batch.label_count(); }
  int64_t rows() const override { return kRows; }
  void begin(Context& ctx, int64_t row) override;
  void add_gradients(Context& ctx, const HostBatch& batch, const StepSize& step,
                     int64_t row) override;
  void add_losses(Context& ctx, const HostBatch& batch, const StepSize& step, int64_t row) override;
  Figures read(Context& ctx, int64_t row, const StepSize& step) override;
  RouterFigures read_routers(Context& ctx) override { return rows_.read_routers(ctx); }

 private:
  Batch upload(Context& ctx, const HostBatch& batch) const;

  const Mixtral& model_;
  Settings settings_;
  LossRows rows_;
};

}  // namespace mixtral
