#include "eval/evaluate.h"

#include <cmath>

namespace mixtral {
namespace {

/// A statistics tensor as doubles.
std::vector<double> download(Context& ctx, const Tensor& device) {
  const auto count = static_cast<size_t>(device.numel());
  if (device.dtype() == Dtype::f64) {
    std::vector<double> values(count);
    ctx.backend().download(device, Tensor(values.data(), device.shape(), Dtype::f64));
    return values;
  }
  std::vector<float> values(count);
  ctx.backend().download(device, Tensor(values.data(), device.shape(), Dtype::f32));
  return {values.begin(), values.end()};
}

void add(std::vector<double>& sum, const std::vector<double>& values, double weight) {
  sum.resize(values.size());
  for (size_t i = 0; i < values.size(); ++i) sum[i] += weight * values[i];
}

/// ops::BalanceLoss's aux on means over all tokens: load and importance are [L, E].
double balance(const std::vector<double>& load, const std::vector<double>& importance,
               size_t layers, size_t experts, bool pooled) {
  std::vector<double> mean_load(experts), mean_importance(experts);
  double per_layer = 0, whole = 0;
  const auto l = static_cast<double>(layers), e = static_cast<double>(experts);
  for (size_t i = 0; i < load.size(); ++i) {
    per_layer += e * load[i] * importance[i] / l;
    mean_load[i % experts] += load[i] / l;
    mean_importance[i % experts] += importance[i] / l;
  }
  for (size_t i = 0; i < experts; ++i) whole += e * mean_load[i] * mean_importance[i];
  return pooled ? whole : per_layer;
}

}  // namespace

Evaluation evaluate(Context& ctx, const Mixtral& model, Batches& batches,
                    const Objective& objective, const std::function<void(int64_t)>& progress) {
  const auto layers = static_cast<size_t>(model.config().num_layers);
  const auto experts = static_cast<size_t>(model.config().num_experts);
  Evaluation result;
  std::vector<double> load, importance, z, entropy;
  double sum = 0;
  int64_t rows = 0;
  while (auto host = batches.next()) {
    const ArenaScope scope(ctx.arena());
    const LossTotals totals = LossTotals::allocate(ctx);
    const auto reports = model.allocate_reports(ctx);
    const Batch batch = upload(ctx, *host, model.config().vocab_size, model.context());
    accumulate_losses(ctx, model, batch, objective, 1, totals, &reports);
    double cross_entropy = 0;
    ctx.backend().download(totals.cross_entropy, Tensor(&cross_entropy, {1}, Dtype::f64));
    sum += cross_entropy;
    result.tokens += host->label_count();
    result.positions += host->size();
    const auto weight = static_cast<double>(host->size());
    add(load, download(ctx, reports.load), weight);
    add(importance, download(ctx, reports.importance), weight);
    add(z, download(ctx, reports.z), weight);
    add(entropy, download(ctx, reports.entropy), weight);
    rows += host->sequences();
    if (progress) progress(rows);
  }
  if (result.tokens == 0) throw Error("the data holds no token to score; every label is masked");
  const auto positions = static_cast<double>(result.positions);
  for (auto* figures : {&load, &importance, &z, &entropy})
    for (double& value : *figures) value /= positions;
  result.cross_entropy = sum / static_cast<double>(result.tokens);
  result.perplexity = std::exp(result.cross_entropy);
  result.aux =
      balance(load, importance, layers, experts, objective.balance == Objective::Balance::hf);
  for (const double value : z) result.z += value / static_cast<double>(layers);
  result.loss = objective.total(result.cross_entropy, result.aux, result.z);
  for (size_t i = 0; i < layers; ++i)
    result.load.emplace_back(load.begin() + static_cast<std::ptrdiff_t>(i * experts),
                             load.begin() + static_cast<std::ptrdiff_t>((i + 1) * experts));
  result.entropy = entropy;
  return result;
}

}  // namespace mixtral
