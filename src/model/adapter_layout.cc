// What an adapter consists of, without values: targets, a new adapter's modules, PEFT's names and
// configuration.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

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

AdapterFile new_adapter(const AdapterSpec& spec, const ModelConfig& config) {
  if (spec.targets.empty()) throw UsageError("--targets is empty; try q_proj,v_proj");
  if (spec.rank < 1) throw UsageError(fmt::format("--rank is {}, expected at least 1", spec.rank));
  for (const int64_t expert : spec.experts) {
    if (expert < 0 || expert >= config.num_experts)
      throw UsageError(fmt::format("--experts: {} is not one of this model's {} experts", expert,
                                   config.num_experts));
  }
  std::set<std::string> names(spec.targets.begin(), spec.targets.end());
  for (const auto& [fused, single] : std::initializer_list<std::pair<const char*, const char*>>{
           {"gate_up_proj", "w1"}, {"gate_up_proj", "w3"}, {"down_proj", "w2"}}) {
    if (names.contains(fused) && names.contains(single))
      throw UsageError(
          fmt::format("--targets: {} and {} are the same weights; choose one", fused, single));
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
        throw UsageError(
            fmt::format("--alpha: that of {} is {}, expected {} at most; with --scale, it is the "
                        "scale times the rank (--rslora: times its root), which is {}",
                        target.name, module.alpha, kMostAdapterFactor, module.rank));
      const auto rank = static_cast<double>(module.rank);
      module.scale = module.alpha / (spec.rslora ? std::sqrt(rank) : rank);
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

std::string peft_name(const AdapterModule& module, char matrix, int64_t expert, bool both_fused) {
  std::string path;
  if (module.layer < 0) {
    path = module.target;
  } else {
    const AdapterTarget& target = adapter_target(module.target);
    path = fmt::format("model.layers.{}.", module.layer);
    if (target.per_expert)
      path += fmt::format("block_sparse_moe.experts.{}.{}", expert, module.target);
    else
      path += target.module;
    if (both_fused && module.target == "gate_up_proj") path += ".base_layer";
  }
  return fmt::format("{}{}.lora_{}.weight", kPeftPrefix, path, matrix);
}

std::string peft_config(const AdapterFile& adapter, const ModelConfig& model) {
  using nlohmann::ordered_json;
  // The commonest rank and alpha are the configuration's; others go into the patterns.
  std::map<int64_t, int> ranks;
  std::map<double, int> alphas;
  for (const AdapterModule& module : adapter.modules) {
    ++ranks[module.rank];
    ++alphas[module.alpha];
  }
  auto commonest = [](const auto& counts) {
    return std::max_element(counts.begin(), counts.end(),
                            [](const auto& a, const auto& b) { return a.second < b.second; })
        ->first;
  };
  const int64_t rank = commonest(ranks);
  const double alpha = commonest(alphas);
  auto number = [](double value) {
    return value == std::floor(value) ? ordered_json(static_cast<int64_t>(value))
                                      : ordered_json(value);
  };
  ordered_json modules = ordered_json::array(), parameters = ordered_json::array();
  ordered_json rank_pattern = ordered_json::object(), alpha_pattern = ordered_json::object();
  // A target that all layers (and all experts) have goes by its name; others are listed one by one,
  // as the end of a module's path, which PEFT matches as well.
  std::map<std::string, int64_t> layers_of;
  std::set<std::string> partial, seen;
  for (const AdapterModule& module : adapter.modules) {
    ++layers_of[module.target];
    if (adapter_target(module.target).per_expert &&
        static_cast<int64_t>(module.experts.size()) < model.num_experts)
      partial.insert(module.target);
  }
  for (const auto& [name, count] : layers_of)
    if (adapter_target(name).per_layer && count < model.num_layers) partial.insert(name);
  for (const AdapterModule& module : adapter.modules) {
    const AdapterTarget& target = adapter_target(module.target);
    if (target.fused) {
      if (partial.contains(module.target))
        parameters.push_back(fmt::format("layers.{}.mlp.experts.{}", module.layer, module.target));
      else if (seen.insert(module.target).second)
        parameters.push_back("mlp.experts." + module.target);
    } else if (!partial.contains(module.target)) {
      if (seen.insert(module.target).second) modules.push_back(module.target);
    } else if (target.per_expert) {
      for (const int64_t e : module.experts)
        modules.push_back(fmt::format("layers.{}.block_sparse_moe.experts.{}.{}", module.layer, e,
                                      module.target));
    } else {
      modules.push_back(fmt::format("layers.{}.{}", module.layer, target.module));
    }
    std::string key = peft_name(module, 'A', 0, false);
    key = key.substr(kPeftPrefix.size(),
                     key.size() - kPeftPrefix.size() - std::string_view(".lora_A.weight").size());
    if (target.per_expert)
      key =
          fmt::format("layers.{}.block_sparse_moe.experts.[0-9]+.{}", module.layer, module.target);
    if (module.rank != rank) rank_pattern[key] = module.rank;
    if (module.alpha != alpha) alpha_pattern[key] = number(module.alpha);
  }
  ordered_json json;
  json["peft_type"] = "LORA";
  json["task_type"] = "CAUSAL_LM";
  json["base_model_name_or_path"] =
      adapter.base_model.empty() ? ordered_json(nullptr) : ordered_json(adapter.base_model);
  json["r"] = rank;
  json["lora_alpha"] = number(alpha);
  json["lora_dropout"] = adapter.dropout;
  json["use_rslora"] = adapter.rslora;
  json["use_dora"] = false;
  json["bias"] = "none";
  json["fan_in_fan_out"] = false;
  json["inference_mode"] = true;
  json["init_lora_weights"] = true;
  json["modules_to_save"] = nullptr;
  json["target_modules"] = modules;
  if (!parameters.empty()) json["target_parameters"] = parameters;
  json["rank_pattern"] = rank_pattern;
  json["alpha_pattern"] = alpha_pattern;
  return json.dump(2) + "\n";
}

}  // namespace mixtral
