#include "train/preference.h"

#include <fmt/format.h>

#include <cmath>

#include "base/advice.h"

namespace mixtral {
namespace {

/// −log σ(x), without overflow.
double minus_log_sigmoid(double x) {
  return x >= 0 ? std::log1p(std::exp(-x)) : -x + std::log1p(std::exp(x));
}

double sigmoid(double x) {
  return x >= 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x));
}

double per_token(int64_t tokens) { return 1 / static_cast<double>(std::max<int64_t>(tokens, 1)); }

}  // namespace

void PreferenceSettings::validate() const {
  if (!std::isfinite(beta) || beta <= 0)
    throw AdvisedUsageError(fmt::format("‹beta›: expected a number above 0, found {}", beta));
  if (!(label_smoothing >= 0 && label_smoothing < 0.5))
    throw AdvisedUsageError(fmt::format(
        "‹label-smoothing›: expected 0 or more and less than 0.5, found {}", label_smoothing));
  if (loss == Loss::ipo && label_smoothing > 0)
    throw AdvisedUsageError("‹label-smoothing› has no meaning with ‹dpo-loss ipo›; leave one out");
}

PreferenceSettings::Loss parse_preference_loss(std::string_view name) {
  if (name == "sigmoid") return PreferenceSettings::Loss::sigmoid;
  if (name == "normalized") return PreferenceSettings::Loss::normalized;
  if (name == "ipo") return PreferenceSettings::Loss::ipo;
  throw AdvisedUsageError(
      fmt::format("‹dpo-loss› is sigmoid, normalized or ipo, not \"{}\"", name));
}

PairLoss pair_loss(const PreferenceSettings& settings, const PairLogProbabilities& pair) {
  const bool means = settings.loss != PreferenceSettings::Loss::sigmoid;
  const double chosen_share = means ? per_token(pair.chosen_tokens) : 1;
  const double rejected_share = means ? per_token(pair.rejected_tokens) : 1;
  const double beta = settings.beta, smoothing = settings.label_smoothing;
  PairLoss result;
  result.chosen_reward = beta * chosen_share * (pair.policy_chosen - pair.reference_chosen);
  result.rejected_reward = beta * rejected_share * (pair.policy_rejected - pair.reference_rejected);
  const double margin = result.margin();  // βh
  double slope = 0;                       // d loss / dh
  if (settings.loss == PreferenceSettings::Loss::ipo) {
    const double distance = margin / beta - 1 / (2 * beta);
    result.loss = distance * distance;
    slope = 2 * distance;
  } else {
    result.loss =
        (1 - smoothing) * minus_log_sigmoid(margin) + smoothing * minus_log_sigmoid(-margin);
    slope = beta * (smoothing * sigmoid(margin) - (1 - smoothing) * sigmoid(-margin));
  }
  result.chosen_slope = slope * chosen_share;
  result.rejected_slope = -slope * rejected_share;
  return result;
}

PreferenceCriterion::PreferenceCriterion(Context& ctx, const PreferenceModels& models,
                                         const PreferenceSettings& settings)
    : models_(models),
      settings_(settings),
      rows_(ctx, models.policy.config(), kRows),
      sums_(static_cast<size_t>(kRows)) {
  CHECK(models.adapter || models.reference, "preference training needs a reference");
}

void PreferenceCriterion::begin(Context& ctx, int64_t row) {
  rows_.clear(ctx, row);
  sums_[static_cast<size_t>(row)] = {};
}

void PreferenceCriterion::check(const HostBatch& batch) const {
  check_batch(batch, models_.policy.config().vocab_size, models_.policy.context());
}

void PreferenceCriterion::start_pairs(const HostBatch& host) {
  CHECK(host.sequences() % 2 == 0, "sequences of preference data come in pairs");
  pairs_.assign(static_cast<size_t>(host.sequences() / 2), {});
  for (int64_t s = 0; s < host.sequences(); ++s) {
    const auto i = static_cast<size_t>(s);
    int64_t count = 0;
    for (int32_t n = host.sequence_starts[i]; n < host.sequence_starts[i + 1]; ++n)
      count += host.labels[static_cast<size_t>(n)] != ops::kIgnoredLabel;
    PairLogProbabilities& pair = pairs_[i / 2];
    (s % 2 == 0 ? pair.chosen_tokens : pair.rejected_tokens) = count;
  }
}

std::vector<double> PreferenceCriterion::sequence_sums(Context& ctx, const Batch& batch,
                                                       const Tensor& losses) const {
  const int64_t count = batch.sequences.starts.dim(0) - 1;
  const Tensor device = ctx.allocate({count}, Dtype::f64);
  ctx.run(ops::SegmentSum{.x = losses, .starts = batch.sequences.starts, .y = device});
  std::vector<double> sums(static_cast<size_t>(count));
  ctx.backend().download(device, Tensor(sums.data(), {count}, Dtype::f64));
  return sums;
}

void PreferenceCriterion::score_reference(Context& ctx, const Batch& batch) {
  const ArenaScope scope(ctx.arena());
  const Tensor losses = ctx.allocate({batch.size()}, ctx.statistics());
  const LossTotals unused = LossTotals::allocate(ctx);
  const Objective nothing{.balance = Objective::Balance::off};
  Batch plain = batch;  // the reference is the base alone, or a model of its own
  plain.sequences.adapters = {.all = kNoAdapter};
  accumulate_losses(ctx, models_.reference ? *models_.reference : models_.policy, plain, nothing, 1,
                    unused, nullptr, losses);
  const std::vector<double> sums = sequence_sums(ctx, batch, losses);
  for (size_t i = 0; i < pairs_.size(); ++i) {
    pairs_[i].reference_chosen = -sums[2 * i];
    pairs_[i].reference_rejected = -sums[2 * i + 1];
  }
}

void PreferenceCriterion::take_policy(Context& ctx, const Batch& batch, const Tensor& losses,
                                      Sums& sums) {
  const std::vector<double> logs = sequence_sums(ctx, batch, losses);
  for (size_t i = 0; i < pairs_.size(); ++i) {
    pairs_[i].policy_chosen = -logs[2 * i];
    pairs_[i].policy_rejected = -logs[2 * i + 1];
    const PairLoss loss = pair_loss(settings_, pairs_[i]);
    sums.loss += loss.loss;
    sums.chosen += loss.chosen_reward;
    sums.rejected += loss.rejected_reward;
    sums.accuracy += loss.margin() > 0 ? 1 : loss.margin() == 0 ? 0.5 : 0;
  }
}

Tensor PreferenceCriterion::token_scales(Context& ctx, const HostBatch& host, double share) const {
  const Tensor device = ctx.allocate({host.size()}, ctx.statistics());
  const Buffer memory(host_memory(), device.bytes());
  const Tensor scales = memory.tensor(device.shape(), device.dtype());
  for (int64_t s = 0; s < host.sequences(); ++s) {
    const auto i = static_cast<size_t>(s);
    const PairLoss loss = pair_loss(settings_, pairs_[i / 2]);
    // A token's loss is minus its log-probability.
    const double scale = -share * (s % 2 == 0 ? loss.chosen_slope : loss.rejected_slope);
    for (int32_t n = host.sequence_starts[i]; n < host.sequence_starts[i + 1]; ++n) {
      if (scales.dtype() == Dtype::f64)
        scales.as<double>()[n] = scale;
      else
        scales.as<float>()[n] = static_cast<float>(scale);
    }
  }
  ctx.backend().upload(scales, device);
  ctx.backend().synchronize();
  return device;
}

void PreferenceCriterion::begin_pairs(Context& ctx, const HostBatch& host, const Batch& batch) {
  start_pairs(host);
  score_reference(ctx, batch);
}

void PreferenceCriterion::add_gradients(Context& ctx, const StepBatch& step_batch,
                                        const StepSize& step, int64_t row) {
  const ArenaScope scope(ctx.arena());
  const HostBatch& host = *step_batch.host;
  const Batch& batch = step_batch.batch;
  begin_pairs(ctx, host, batch);
  const double share = 1 / static_cast<double>(std::max<int64_t>(step.weight, 1));
  const GradientOptions options{.weigh =
                                    [&](const Tensor& losses) {
                                      take_policy(ctx, batch, losses,
                                                  sums_[static_cast<size_t>(row)]);
                                      return token_scales(ctx, host, share);
                                    },
                                .share = 1 / static_cast<double>(step.batches),
                                .recompute = settings_.recompute};
  const Mixtral::RouterReports reports = rows_.reports(row);
  accumulate_gradients(ctx, models_.policy, batch, settings_.objective, options, rows_.totals(row),
                       &reports);
}

void PreferenceCriterion::add_losses(Context& ctx, const HostBatch& host, const StepSize& step,
                                     int64_t row) {
  const ArenaScope scope(ctx.arena());
  check(host);
  const Batch batch = upload_batch(ctx, host);
  begin_pairs(ctx, host, batch);
  const Tensor losses = ctx.allocate({batch.size()}, ctx.statistics());
  const Mixtral::RouterReports reports = rows_.reports(row);
  accumulate_losses(ctx, models_.policy, batch, settings_.objective,
                    1 / static_cast<double>(step.batches), rows_.totals(row), &reports, losses);
  take_policy(ctx, batch, losses, sums_[static_cast<size_t>(row)]);
}

void PreferenceCriterion::keep(Context& ctx, int64_t from, int64_t to) {
  rows_.copy(ctx, from, to);
  sums_[static_cast<size_t>(to)] = sums_[static_cast<size_t>(from)];
}

void PreferenceCriterion::fetch(Context& ctx, int64_t row, Wait wait) {
  rows_.fetch(ctx, row, wait);
  fetched_ = sums_[static_cast<size_t>(row)];
}

Figures PreferenceCriterion::figures(const StepSize& step) const {
  const LossValues routers = rows_.losses(settings_.objective, step.weight);
  const Sums& sums = fetched_;
  const auto pairs = static_cast<double>(std::max<int64_t>(step.weight, 1));
  Figures figures;
  figures.cross_entropy = sums.loss / pairs;
  figures.aux = routers.aux;
  figures.z = routers.z;
  figures.squared_norm = rows_.squared_norm();
  figures.loss = settings_.objective.total(figures.cross_entropy, figures.aux, figures.z);
  figures.more = {{"margin", (sums.chosen - sums.rejected) / pairs},
                  {"accuracy", sums.accuracy / pairs},
                  {"chosen_reward", sums.chosen / pairs},
                  {"rejected_reward", sums.rejected / pairs}};
  return figures;
}

}  // namespace mixtral
