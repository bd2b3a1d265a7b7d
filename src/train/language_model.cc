#include "train/language_model.h"

namespace mixtral {

LanguageModelCriterion::LanguageModelCriterion(Context& ctx, const Mixtral& model,
                                               const Settings& settings)
    : model_(model), settings_(settings), rows_(ctx, model.config(), kRows) {}

Batch LanguageModelCriterion::upload(Context& ctx, const HostBatch& batch) const {
  return mixtral::upload(ctx, batch, model_.config().vocab_size, model_.context());
}

void LanguageModelCriterion::begin(Context& ctx, int64_t row) { rows_.clear(ctx, row); }

void LanguageModelCriterion::add_gradients(Context& ctx, const HostBatch& batch,
                                           const StepSize& step, int64_t row) {
  const ArenaScope scope(ctx.arena());
  // A step without any label has no cross-entropy, and so no scale for it.
  const double scale = step.weight > 0 ? 1 / static_cast<double>(step.weight) : 0;
  ctx.run(ops::Fill{.x = rows_.label_scale(), .value = scale});
  const GradientOptions options{.label_scale = rows_.label_scale(),
                                .share = 1 / static_cast<double>(step.batches),
                                .recompute = settings_.recompute};
  accumulate_gradients(ctx, model_, upload(ctx, batch), settings_.objective, options,
                       rows_.totals(row), &rows_.reports());
}

void LanguageModelCriterion::add_losses(Context& ctx, const HostBatch& batch, const StepSize& step,
                                        int64_t row) {
  const ArenaScope scope(ctx.arena());
  accumulate_losses(ctx, model_, upload(ctx, batch), settings_.objective,
                    1 / static_cast<double>(step.batches), rows_.totals(row), &rows_.reports());
}

Figures LanguageModelCriterion::read(Context& ctx, int64_t row, const StepSize& step) {
  const LossValues values = mixtral::read(ctx, rows_.totals(row), settings_.objective, step.weight);
  return {.loss = values.total,
          .cross_entropy = values.cross_entropy,
          .aux = values.aux,
          .z = values.z,
          .more = {}};
}

}  // namespace mixtral
