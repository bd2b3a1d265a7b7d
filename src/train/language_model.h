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
  void check(const HostBatch& batch) const override;
  void begin(Context& ctx, int64_t row) override { rows_.clear(ctx, row); }
  using Criterion::add_gradients;
  void add_gradients(Context& ctx, const StepBatch& batch, const StepSize& step,
                     int64_t row) override;
  void add_losses(Context& ctx, const HostBatch& batch, const StepSize& step, int64_t row) override;
  void keep(Context& ctx, int64_t from, int64_t to) override { rows_.copy(ctx, from, to); }
  Tensor squared_norm(int64_t row) const override { return rows_.squared_norm(row); }
  void fetch(Context& ctx, int64_t row, Wait wait) override { rows_.fetch(ctx, row, wait); }
  Figures figures(const StepSize& step) const override;
  RouterFigures routers() const override { return rows_.routers(); }

 private:
  const Mixtral& model_;
  Settings settings_;
  LossRows rows_;
};

}  // namespace mixtral
