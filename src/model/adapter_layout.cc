// What an adapter consists of, without values: targets, and a new adapter's modules.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "base/advice.h"
#include "model/adapter_file.h"

namespace mixtral {

const std::vector<AdapterTarget>& adapter_targets() {
  static const std::vector<AdapterTarget> targets = {
      {.name = "q_proj", .module = "self_attn.q_proj"},
      {.name = "k_proj", .module = "self_attn.k_proj"},
      {.name = "v_proj", .module = "self_attn.v_proj"},
      {.name = "o_proj", .module = "self_attn.o_proj"},
      {.name = "gate", .module = "block_sparse_moe.gate"},
      {.name = "w1", .module = "block_sparse_moe.experts.*.w1", .per_expert = true},
      {.name = "w2", .module = "block_sparse_moe.experts.*.w2", .per_expert = true},
      {.name = "w3", .module = "block_sparse_moe.experts.*.w3", .per_expert = true},
      {.name = "gate_up_proj", .module = "mlp.experts", .fused = true},
      {.name = "down_proj", .module = "mlp.experts", .fused = true},
      {.name = "lm_head", .module = "lm_head", .per_layer = false}};
  return targets;
}

const AdapterTarget& adapter_target(std::string_view name) {
  std::vector<std::string> names;
  for (const AdapterTarget& target : adapter_targets()) {
    if (target.name == name) return target;
    names.push_back(target.name);
  }
  throw UsageError(fmt::format("'{}' is nothing that a LoRA can be put on; choose from {}", name,
                               fmt::join(names, ", ")));
}

TargetShape target_shape(const ModelConfig& c, std::string_view target) {
  const int64_t d = c.hidden_size, f = c.intermediate_size, e = c.num_experts;
  const int64_t q = c.num_heads * c.head_dim, kv = c.num_kv_heads * c.head_dim;
  if (target == "q_proj") return {1, q, d};
  if (target == "k_proj" || target == "v_proj") return {1, kv, d};
  if (target == "o_proj") return {1, d, q};
  if (target == "gate") return {1, e, d};
  if (target == "w1" || target == "w3") return {e, f, d};
  if (target == "w2" || target == "down_proj") return {e, d, f};
  if (target == "gate_up_proj") return {e, 2 * f, d};
  CHECK(target == "lm_head");
  return {1, c.vocab_size, d};
}

double adapter_scale(double alpha, int64_t rank, bool rslora) {
  const auto r = static_cast<double>(rank);
  return alpha / (rslora ? std::sqrt(r) : r);
}

AdapterFile new_adapter(const AdapterSpec& spec, const ModelConfig& config) {
  if (spec.targets.empty()) throw AdvisedUsageError("‹targets› is empty; try q_proj,v_proj");
  const auto check_rank = [](const std::string& setting, int64_t rank) {
    if (rank < 1 || rank > kMostAdapterRank)
      throw AdvisedUsageError(
          fmt::format("{} is {}, expected from 1 to {}", setting, rank, kMostAdapterRank));
  };
  check_rank("‹rank›", spec.rank);
  for (const auto& [name, rank] : spec.rank_of) check_rank("‹target-ranks›: " + name, rank);
  for (const int64_t expert : spec.experts) {
    if (expert < 0 || expert >= config.num_experts)
      throw AdvisedUsageError(fmt::format("‹experts›: {} is not one of this model's {} experts",
                                          expert, config.num_experts));
  }
  std::set<std::string> names(spec.targets.begin(), spec.targets.end());
  for (const auto& [fused, single] : std::initializer_list<std::pair<const char*, const char*>>{
           {"gate_up_proj", "w1"}, {"gate_up_proj", "w3"}, {"down_proj", "w2"}}) {
    if (names.contains(fused) && names.contains(single))
      throw AdvisedUsageError(
          fmt::format("‹targets›: {} and {} are the same weights; choose one", fused, single));
  }
  AdapterFile adapter;
  adapter.rslora = spec.rslora;
  adapter.dropout = spec.dropout;
  const int64_t first =
      spec.last_layers > 0 ? std::max<int64_t>(0, config.num_layers - spec.last_layers) : 0;
  for (int64_t layer = -1; layer < config.num_layers; ++layer) {
    if (layer >= 0 && layer < first) continue;
    for (const AdapterTarget& target : adapter_targets()) {
      if (!names.contains(target.name) || target.per_layer != (layer >= 0)) continue;
      AdapterModule module;
      module.layer = layer;
      module.target = target.name;
      module.rank = spec.rank;
      module.alpha = spec.alpha;
      for (const auto& [name, rank] : spec.rank_of)
        if (name == target.name) module.rank = rank;
      for (const auto& [name, alpha] : spec.alpha_of)
        if (name == target.name) module.alpha = alpha;
      // Beyond this the adapter could be written, but not read again. Not finite is not less,
      // either.
      if (!(std::abs(module.alpha) <= kMostAdapterFactor))
        throw AdvisedUsageError(
            fmt::format("‹alpha›: that of {} is {}, expected {} at most; with ‹scale›, it is the "
                        "scale times the rank (‹rslora›: times its root), which is {}",
                        target.name, module.alpha, kMostAdapterFactor, module.rank));
      module.scale = adapter_scale(module.alpha, module.rank, spec.rslora);
      if (target.per_expert) {
        module.experts = spec.experts_of_layer.empty()
                             ? spec.experts
                             : spec.experts_of_layer[static_cast<size_t>(layer)];
        std::sort(module.experts.begin(), module.experts.end());
        for (int64_t e = 0, all = module.experts.empty(); all && e < config.num_experts; ++e)
          module.experts.push_back(e);
      }
      adapter.modules.push_back(std::move(module));
    }
  }
  for (const std::string& name : spec.targets) adapter_target(name);  // refuses unknown ones
  return adapter;
}

}  // namespace mixtral
