#include "train/language_model.h"

#include <numeric>

namespace mixtral {
namespace {

/// Cuts tensors from a buffer, each aligned to 256 bytes.
class Cutter {
 public:
  Tensor take(Shape shape, Dtype dtype) {
    const int64_t begin = offset_;
    offset_ += (shape.numel() * size_of(dtype) + 255) / 256 * 256;
    return {base_ + begin, shape, dtype};
  }
  int64_t size() const { return offset_; }
  /// Starts again, in memory.
  void place(const Buffer& buffer) {
    base_ = static_cast<char*>(buffer.data());
    offset_ = 0;
  }

 private:
  char* base_ = nullptr;
  int64_t offset_ = 0;
};

std::vector<double> to_host(Backend& backend, const Tensor& device) {
  const auto count = static_cast<size_t>(device.numel());
  std::vector<double> result(count);
  if (device.dtype() == Dtype::f64) {
    backend.download(device, Tensor(result.data(), device.shape(), Dtype::f64));
  } else {
    std::vector<float> values(count);
    backend.download(device, Tensor(values.data(), device.shape(), Dtype::f32));
    result.assign(values.begin(), values.end());
  }
  return result;
}

}  // namespace

LanguageModelCriterion::LanguageModelCriterion(Context& ctx, const Mixtral& model,
                                               const Settings& settings)
    : model_(model), settings_(settings) {
  const Shape per_expert{model.config().num_layers, model.config().num_experts};
  const Shape per_layer{model.config().num_layers};
  const Dtype statistics = ctx.statistics();
  Cutter cutter;
  auto cut = [&] {
    cross_entropy_ = cutter.take({kRows}, Dtype::f64);
    router_ = cutter.take({kRows, 2}, statistics);
    label_scale_ = cutter.take({1}, statistics);
    reports_ = {.load = cutter.take(per_expert, statistics),
                .importance = cutter.take(per_expert, statistics),
                .z = cutter.take(per_layer, statistics),
                .entropy = cutter.take(per_layer, statistics)};
  };
  cut();
  buffer_ = Buffer(ctx.backend(), cutter.size());
  cutter.place(buffer_);
  cut();
  for (const Tensor& report : {reports_.load, reports_.importance, reports_.z, reports_.entropy})
    ctx.run(ops::Fill{.x = report});
}

LossTotals LanguageModelCriterion::totals(int64_t row) const {
  return {.cross_entropy = cross_entropy_.slice(row, row + 1), .router = router_[row]};
}

Batch LanguageModelCriterion::upload(Context& ctx, const HostBatch& batch) const {
  return mixtral::upload(ctx, batch, model_.config().vocab_size, model_.context());
}

void LanguageModelCriterion::begin(Context& ctx, int64_t row) {
  const LossTotals row_totals = totals(row);
  ctx.run(ops::Fill{.x = row_totals.cross_entropy});
  ctx.run(ops::Fill{.x = row_totals.router});
}

void LanguageModelCriterion::add_gradients(Context& ctx, const HostBatch& batch,
                                           const StepSize& step, int64_t row) {
  const ArenaScope scope(ctx.arena());
  // A step without any label has no cross-entropy, and so no scale for it.
  const double scale = step.weight > 0 ? 1 / static_cast<double>(step.weight) : 0;
  ctx.run(ops::Fill{.x = label_scale_, .value = scale});
  const GradientOptions options{.label_scale = label_scale_,
                                .share = 1 / static_cast<double>(step.batches),
                                .recompute = settings_.recompute};
  accumulate_gradients(ctx, model_, upload(ctx, batch), settings_.objective, options, totals(row),
                       &reports_);
}

void LanguageModelCriterion::add_losses(Context& ctx, const HostBatch& batch, const StepSize& step,
                                        int64_t row) {
  const ArenaScope scope(ctx.arena());
  accumulate_losses(ctx, model_, upload(ctx, batch), settings_.objective,
                    1 / static_cast<double>(step.batches), totals(row), &reports_);
}

Figures LanguageModelCriterion::read(Context& ctx, int64_t row, const StepSize& step) {
  const LossValues values = mixtral::read(ctx, totals(row), settings_.objective, step.weight);
  return {.loss = values.total,
          .cross_entropy = values.cross_entropy,
          .aux = values.aux,
          .z = values.z,
          .more = {}};
}

RouterFigures LanguageModelCriterion::read_routers(Context& ctx) {
  const auto load = to_host(ctx.backend(), reports_.load);
  const auto layers = static_cast<size_t>(reports_.load.dim(0));
  const auto experts = static_cast<size_t>(reports_.load.dim(1));
  RouterFigures figures;
  figures.entropy = to_host(ctx.backend(), reports_.entropy);
  for (size_t l = 0; l < layers; ++l) {
    const auto begin = load.begin() + static_cast<std::ptrdiff_t>(l * experts);
    std::vector<double> shares(begin, begin + static_cast<std::ptrdiff_t>(experts));
    const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
    for (double& share : shares) {
      figures.dead += share == 0;
      if (sum > 0) share /= sum;
    }
    figures.load.push_back(std::move(shares));
  }
  return figures;
}

}  // namespace mixtral
