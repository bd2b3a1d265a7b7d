#include "train/criterion.h"

namespace mixtral {

double label_scale(const StepSize& step) {
  // A step without any label has no cross-entropy, and so no scale for it.
  return step.weight > 0 ? 1 / static_cast<double>(step.weight) : 0;
}

void Criterion::add_gradients(Context& ctx, const HostBatch& batch, const StepSize& step,
                              int64_t row) {
  const ArenaScope scope(ctx.arena());
  check(batch);
  const Tensor scale = ctx.allocate({1}, ctx.statistics());
  ctx.run(ops::Fill{.x = scale, .value = label_scale(step)});
  add_gradients(ctx, {.host = &batch, .batch = upload_batch(ctx, batch), .label_scale = scale},
                step, row);
}

Figures Criterion::read(Context& ctx, int64_t row, const StepSize& step) {
  fetch(ctx, row, Wait::for_all);
  return figures(step);
}

}  // namespace mixtral
