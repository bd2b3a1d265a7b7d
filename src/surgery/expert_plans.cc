#include "surgery/expert_plans.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/advice.h"
#include "base/error.h"
#include "base/random.h"
#include "surgery/expert_clusters.h"

namespace mixtral {
namespace {

constexpr double kRouterDeviation = 0.02;
constexpr uint64_t kRouterStreams = uint64_t{1} << 63;  // apart from those of copies' noise

void require_range(const char* setting, int64_t value, int64_t least, int64_t most) {
  if (value < least || value > most)
    throw setting_error(setting, fmt::format("expected {} to {}, found {}", least, most, value));
}

ModelEdit start(const ModelSource& source, std::string operation) {
  ModelEdit edit{.operation = std::move(operation),
                 .sources = {&source},
                 .config = source.config(),
                 .layers = {},
                 .router_words = {}};
  edit.layers.resize(static_cast<size_t>(source.config().num_layers));
  return edit;
}

void set_noise(ModelEdit& edit, const CopyNoise& noise) {
  edit.noise = noise.deviation;
  edit.noise_share = noise.share;
  edit.seed = noise.seed;
  if (noise.deviation > 0)
    edit.operation += fmt::format(", noise {:.4g} on {:.4g}% of the copies' numbers, seed {}",
                                  noise.deviation, 100 * noise.share, noise.seed);
}

void set_experts(ModelEdit& edit, int64_t experts, int64_t per_token) {
  edit.config.num_experts = experts;
  edit.config.experts_per_token = per_token;
  edit.config.validate("the result");
}

ExpertRecipe one_expert(int64_t expert, bool noisy = false) {
  return {.shares = {{.source = 0, .expert = expert}}, .noisy = noisy};
}

void draw_routers(ModelEdit& edit, uint64_t seed) {
  for (size_t layer = 0; layer < edit.layers.size(); ++layer)
    edit.layers[layer].router = draw_router(edit.config, static_cast<int64_t>(layer), seed);
  edit.router_words =
      fmt::format("drawn, normal with deviation {}, seed {}", kRouterDeviation, seed);
}

/// The highest scores' places, ascending; ties go to the lower place.
std::vector<int64_t> highest(const std::vector<double>& scores, int64_t count) {
  std::vector<int64_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, std::ranges::greater(),
                           [&](int64_t e) { return scores[static_cast<size_t>(e)]; });
  order.resize(static_cast<size_t>(count));
  std::ranges::sort(order);
  return order;
}

std::vector<double> scores_of(const LayerStatistics& layer, PruneBy by) {
  if (by == PruneBy::reap) return layer.saliency;
  return {layer.load.begin(), layer.load.end()};
}

/// The members' mean by load; a plain mean where no token chose any of them.
ExpertRecipe mean_of(const std::vector<size_t>& members, const std::vector<int64_t>& load) {
  double all = 0;
  for (const size_t e : members) all += static_cast<double>(load[e]);
  ExpertRecipe recipe;
  for (const size_t e : members) {
    const double weight =
        all > 0 ? static_cast<double>(load[e]) / all : 1 / static_cast<double>(members.size());
    if (weight > 0)
      recipe.shares.push_back({.source = 0, .expert = static_cast<int64_t>(e), .weight = weight});
  }
  return recipe;
}

void require_same_shape(const ModelSource& base, const ModelSource& model) {
  const auto require = [&](const char* key, int64_t wanted, int64_t found) {
    if (wanted != found)
      throw Error(
          fmt::format("{}: {} is {}, but {} in the base {}; experts of another shape do "
                      "not fit",
                      model.name(), key, found, wanted, base.name()));
  };
  const ModelConfig &a = base.config(), &b = model.config();
  require("hidden_size", a.hidden_size, b.hidden_size);
  require("intermediate_size", a.intermediate_size, b.intermediate_size);
  require("num_hidden_layers", a.num_layers, b.num_layers);
}

/// Rows of length 1 in the direction of each model's prompts.
std::vector<double> prompt_router(const GraftOptions& options, size_t layer) {
  std::vector<double> router;
  for (const auto& prompts : options.prompts) {
    const std::vector<double>& mean = prompts[layer];
    double squares = 0;
    for (const double value : mean) squares += value * value;
    if (!(squares > 0)) throw Error("the prompts of a model give its router nothing: all zeros");
    for (const double value : mean) router.push_back(value / std::sqrt(squares));
  }
  return router;
}

}  // namespace

void require_fewer_experts(const ModelConfig& config, const char* setting, int64_t experts) {
  if (config.num_experts == 1)
    throw setting_error(setting, "the model has no more than one expert");
  require_range(setting, experts, 1, config.num_experts - 1);
}

std::vector<double> draw_router(const ModelConfig& config, int64_t layer, uint64_t seed) {
  RandomStream random(seed, kRouterStreams + static_cast<uint64_t>(layer));
  std::vector<double> router(static_cast<size_t>(config.num_experts * config.hidden_size));
  for (double& value : router) value = kRouterDeviation * random.normal();
  return router;
}

ModelEdit plan_upcycle(const ModelSource& dense, int64_t experts, int64_t per_token,
                       const CopyNoise& noise) {
  if (!dense.is_dense())
    throw setting_error("model",
                        fmt::format("{} is a Mixtral already, and only a dense model is upcycled; "
                                    "`mixtral experts add` gives a Mixtral more experts",
                                    dense.name()));
  require_range("experts", experts, 1, 4096);
  require_range("top-k", per_token, 1, experts);
  ModelEdit edit = start(dense, fmt::format("upcycle: {} experts of a dense model", experts));
  set_noise(edit, noise);
  set_experts(edit, experts, per_token);
  for (LayerEdit& layer : edit.layers)
    for (int64_t e = 0; e < experts; ++e)
      layer.experts.push_back(one_expert(0, noise.deviation > 0 && e > 0));
  draw_routers(edit, noise.seed);
  return edit;
}

ModelEdit plan_prune(const ModelSource& source, const ExpertStatistics& statistics, int64_t keep,
                     PruneBy by) {
  const ModelConfig& config = source.config();
  require_fewer_experts(config, "keep", keep);
  ModelEdit edit = start(source, fmt::format("prune by {}: {} of {} experts, on {} tokens",
                                             by == PruneBy::reap ? "REAP" : "load", keep,
                                             config.num_experts, statistics.tokens));
  set_experts(edit, keep, std::min(keep, config.experts_per_token));
  for (size_t layer = 0; layer < edit.layers.size(); ++layer)
    for (const int64_t e : highest(scores_of(statistics.layers[layer], by), keep))
      edit.layers[layer].experts.push_back(one_expert(e));
  return edit;
}

ModelEdit plan_merge(const ModelSource& source, const ExpertStatistics& statistics, int64_t into) {
  const ModelConfig& config = source.config();
  require_fewer_experts(config, "into", into);
  ModelEdit edit = start(source, fmt::format("merge: {} experts into {}, on {} tokens",
                                             config.num_experts, into, statistics.tokens));
  set_experts(edit, into, std::min(into, config.experts_per_token));
  for (size_t layer = 0; layer < edit.layers.size(); ++layer) {
    const LayerStatistics& own = statistics.layers[layer];
    for (const auto& members : cluster(own.output, static_cast<size_t>(into)))
      edit.layers[layer].experts.push_back(mean_of(members, own.load));
  }
  return edit;
}

ModelEdit plan_add(const ModelSource& source, int64_t count, const std::vector<int64_t>& from,
                   const CopyNoise& noise) {
  const ModelConfig& config = source.config();
  require_range("count", count, 1, 4096 - config.num_experts);
  for (const int64_t e : from) require_range("from", e, 0, config.num_experts - 1);
  ModelEdit edit = start(source, fmt::format("add: {} experts to {}", count, config.num_experts));
  set_noise(edit, noise);
  set_experts(edit, config.num_experts + count, config.experts_per_token);
  for (LayerEdit& layer : edit.layers) {
    for (int64_t e = 0; e < config.num_experts; ++e) layer.experts.push_back(one_expert(e));
    for (int64_t i = 0; i < count; ++i) {
      const int64_t e =
          from.empty() ? i % config.num_experts : from[static_cast<size_t>(i) % from.size()];
      layer.experts.push_back(one_expert(e, noise.deviation > 0));
    }
  }
  return edit;
}

ModelEdit plan_graft(const ModelSource& base, const std::vector<const ModelSource*>& models,
                     const GraftOptions& options) {
  CHECK(options.prompts.empty() || options.prompts.size() == models.size());
  ModelEdit edit = start(base, fmt::format("graft: experts of {} models", models.size()));
  const auto dense = std::ranges::count_if(models, &ModelSource::is_dense);
  int64_t experts = 0;
  for (const ModelSource* model : models) {
    require_same_shape(base, *model);
    if (!options.prompts.empty() && !model->is_dense())
      throw Error(
          fmt::format("{} has {} experts of its own, among which prompts of the model do "
                      "not tell; graft it without prompts",
                      model->name(), model->config().num_experts));
    edit.sources.push_back(model);
    experts += model->config().num_experts;
  }
  if (dense != 0 && dense != std::ssize(models))
    throw Error(
        "some of the models are dense and some are Mixtrals: the former have no routers to "
        "go with the latter's; upcycle the dense ones first");
  require_range("top-k", options.per_token, 1, experts);
  set_experts(edit, experts, options.per_token);
  for (LayerEdit& layer : edit.layers)
    for (size_t m = 0; m < models.size(); ++m)
      for (int64_t e = 0; e < models[m]->config().num_experts; ++e)
        layer.experts.push_back({.shares = {{.source = m + 1, .expert = e}}});
  if (!options.prompts.empty()) {
    for (size_t layer = 0; layer < edit.layers.size(); ++layer)
      edit.layers[layer].router = prompt_router(options, layer);
    edit.router_words = "the direction of what the base's router sees of each model's prompts";
  } else if (dense > 0) {
    draw_routers(edit, options.seed);
  }
  return edit;
}

}  // namespace mixtral
