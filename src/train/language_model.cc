#include "train/language_model.h"

namespace mixtral {

LanguageModelCriterion::LanguageModelCriterion(Context& ctx, const Mixtral& model,
                                               const Settings& settings)
    : model_(model), settings_(settings), rows_(ctx, model.config(), kRows) {}

void LanguageModelCriterion::check(const HostBatch& batch) const {
  check_batch(batch, model_.config().vocab_size, model_.context());
}

void LanguageModelCriterion::add_gradients(Context& ctx, const StepBatch& batch,
                                           const StepSize& step, int64_t row) {
  const GradientOptions options{.label_scale = batch.label_scale,
                                .share = 1 / static_cast<double>(step.batches),
                                .recompute = settings_.recompute};
  const Mixtral::RouterReports reports = rows_.reports(row);
  accumulate_gradients(ctx, model_, batch.batch, settings_.objective, options, rows_.totals(row),
                       &reports);
}

void LanguageModelCriterion::add_losses(Context& ctx, const HostBatch& batch, const StepSize& step,
                                        int64_t row) {
  const ArenaScope scope(ctx.arena());
  check(batch);
  const Mixtral::RouterReports reports = rows_.reports(row);
  accumulate_losses(ctx, model_, upload_batch(ctx, batch), settings_.objective,
                    1 / static_cast<double>(step.batches), rows_.totals(row), &reports);
}

Figures LanguageModelCriterion::figures(const StepSize& step) const {
  const LossValues values = rows_.losses(settings_.objective, step.weight);
  return {.loss = values.total,
          .cross_entropy = values.cross_entropy,
          .aux = values.aux,
          .z = values.z,
          .more = {},
          .squared_norm = rows_.squared_norm()};
}

}  // namespace mixtral
