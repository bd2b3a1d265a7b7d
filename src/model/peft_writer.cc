#include "model/peft_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "model/peft_config.h"

namespace mixtral {
namespace {

using nlohmann::ordered_json;

// The first version whose packed parameters have inputs and outputs as written here is 0.19.
constexpr const char* kPeftVersion = "0.21.2";

/// Null when the layer has no such module.
auto* find_module(auto& modules, int64_t layer, std::string_view target) {
  const auto found = std::ranges::find_if(
      modules, [&](const AdapterModule& m) { return m.layer == layer && m.target == target; });
  return found == modules.end() ? nullptr : &*found;
}

/// Where the patterns have a module: below "layers.L." or at the top.
std::string pattern_of(const AdapterModule& module) {
  const AdapterTarget& target = adapter_target(module.target);
  if (target.per_expert) return "block_sparse_moe.experts.[0-9]+." + module.target;
  if (target.fused) return target.module + "." + module.target;
  return target.module;
}

/// rank_pattern or alpha_pattern in the making: values by pattern and layer, in order.
class Patterns {
 public:
  explicit Patterns(bool whole) : whole_(whole) {}

  /// `otherwise` is what PEFT takes without a pattern.
  void add(const std::string& pattern, int64_t layer, double value, double otherwise) {
    const auto found =
        std::ranges::find_if(all_, [&](const auto& of) { return of.pattern == pattern; });
    Pattern& of = found == all_.end() ? all_.emplace_back(Pattern{.pattern = pattern}) : *found;
    of.otherwise = otherwise;
    of.by_layer[layer] = value;
  }

  /// One pattern for all layers where they agree, else one a layer.
  ordered_json json() const {
    ordered_json result = ordered_json::object();
    for (const Pattern& of : all_) {
      const double first = of.by_layer.begin()->second;
      const bool same = std::ranges::all_of(
          of.by_layer, [&](const auto& entry) { return entry.second == first; });
      if (same && first != of.otherwise) result[of.pattern] = number(first);
      for (const auto& [layer, value] : of.by_layer)
        if (!same && value != of.otherwise)
          result[fmt::format("layers.{}.{}", layer, of.pattern)] = number(value);
    }
    return result;
  }

  ordered_json number(double value) const {
    if (whole_ || value == std::floor(value)) return static_cast<int64_t>(value);
    return value;
  }

 private:
  struct Pattern {
    std::string pattern;
    double otherwise = 0;
    std::map<int64_t, double> by_layer;
  };
  bool whole_;
  std::vector<Pattern> all_;
};

template <class T, class Of>
T commonest(const std::vector<AdapterModule>& modules, Of of) {
  std::map<T, int> counts;
  for (const AdapterModule& module : modules) ++counts[of(module)];
  return std::ranges::max_element(counts, {}, [](const auto& c) { return c.second; })->first;
}

/// Rank and alpha of w1 and w3 packed as gate_up_proj; nothing when their scales differ.
struct Packed {
  double rank = 0, alpha = 0;
};
std::optional<Packed> packed(const AdapterModule& w1, const AdapterModule& w3, bool rslora) {
  if (std::abs(w1.scale - w3.scale) > 1e-12 * std::abs(w1.scale)) return std::nullopt;
  if (w1.rank == w3.rank && !rslora) return Packed{static_cast<double>(2 * w1.rank), 2 * w1.alpha};
  const auto rank = static_cast<double>(w1.rank + w3.rank);
  return Packed{rank, w1.scale * (rslora ? std::sqrt(rank) : rank)};
}

}  // namespace

PeftLayout::PeftLayout(const AdapterFile& adapter, const ModelConfig& model) {
  all_.rslora = adapter.rslora;
  all_.dropout = adapter.dropout;
  all_.base_model = adapter.base_model;
  for (const AdapterModule& module : adapter.modules)
    all_.modules.push_back({.layer = module.layer,
                            .target = module.target,
                            .experts = module.experts,
                            .rank = module.rank,
                            .alpha = module.alpha,
                            .scale = module.scale});
  add_zeros(adapter, model);
  name_targets(model);
}

void PeftLayout::add_zeros(const AdapterFile& adapter, const ModelConfig& model) {
  for (int64_t layer = 0; layer < model.num_layers; ++layer) {
    const auto in_layer = [&](const char* target) {
      return find_module(all_.modules, layer, target);
    };
    const AdapterModule* pair = in_layer("w1");
    if (!pair) pair = in_layer("w3");
    if (!pair) continue;
    AdapterModule missing = *pair;  // as large and as strong, so that they can be packed
    for (const char* target : {"w1", "w3"}) {
      missing.target = target;
      if (!in_layer(target)) all_.modules.push_back(missing);
    }
    if (in_layer("w2") || in_layer("down_proj")) continue;
    missing.target = "w2";
    missing.rank = 1;
    missing.scale = adapter_scale(missing.alpha, 1, all_.rslora);
    all_.modules.push_back(missing);
  }
  for (AdapterModule& module : all_.modules) {
    if (!adapter_target(module.target).per_expert) continue;
    const TargetShape shape = target_shape(model, module.target);
    const AdapterModule* own = find_module(adapter.modules, module.layer, module.target);
    module.experts.clear();
    for (int64_t e = 0; e < model.num_experts; ++e) {
      module.experts.push_back(e);
      if (own && std::ranges::binary_search(own->experts, e)) continue;
      zeros_.push_back({name(module, 'A', e), {module.rank, shape.inputs}});
      zeros_.push_back({name(module, 'B', e), {shape.rows, module.rank}});
    }
  }
}

void PeftLayout::name_targets(const ModelConfig& model) {
  // A target that all layers have goes by its name; others are listed layer by layer, as the end of
  // a module's path, which PEFT matches as well.
  std::map<std::string, int64_t> layers_of;
  for (const AdapterModule& module : all_.modules) ++layers_of[module.target];
  std::set<std::string> seen;
  for (const AdapterModule& module : all_.modules) {
    const AdapterTarget& target = adapter_target(module.target);
    auto& list = target.fused ? target_parameters_ : target_modules_;
    const bool partial = target.per_layer && layers_of[module.target] < model.num_layers;
    const std::string path = target.fused ? target.module + "." + module.target : target.module;
    if (!partial) {
      if (seen.insert(module.target).second) list.push_back(target.fused ? path : module.target);
    } else if (target.per_expert) {
      for (const int64_t e : module.experts)
        list.push_back(fmt::format("layers.{}.block_sparse_moe.experts.{}.{}", module.layer, e,
                                   module.target));
    } else {
      list.push_back(fmt::format("layers.{}.{}", module.layer, path));
    }
  }
  parameters_ = target_parameters_;
  std::ranges::move(converted_targets(target_modules_).parameters, std::back_inserter(parameters_));
}

std::string PeftLayout::name(const AdapterModule& module, char matrix, int64_t expert) const {
  const AdapterTarget& target = adapter_target(module.target);
  std::string path = target.module;
  if (target.per_layer) path = fmt::format("model.layers.{}.{}", module.layer, path);
  if (const size_t star = path.find('*'); star != std::string::npos)
    path.replace(star, 1, fmt::format("{}", expert));
  if (module.target == "gate_up_proj" && packed_targets(parameters_, module.layer).both())
    path += ".base_layer";
  return fmt::format("{}{}.lora_{}.weight", kPeftPrefix, path, matrix);
}

bool PeftLayout::on_parameters() const {
  return std::ranges::any_of(all_.modules, [](const AdapterModule& module) {
    const AdapterTarget& target = adapter_target(module.target);
    return target.per_expert || target.fused || module.target == "gate";
  });
}

std::string PeftLayout::config() const {
  const auto rank = commonest<int64_t>(all_.modules, [](const auto& m) { return m.rank; });
  const auto alpha = commonest<double>(all_.modules, [](const auto& m) { return m.alpha; });
  const auto default_rank = static_cast<double>(rank);
  Patterns ranks(true), alphas(false);
  const auto add = [&](const std::string& pattern, int64_t layer, const Packed& of) {
    ranks.add(pattern, layer, of.rank, default_rank);
    alphas.add(pattern, layer, of.alpha, alpha);
  };
  for (const AdapterModule& module : all_.modules) {
    const Packed own{static_cast<double>(module.rank), module.alpha};
    add(pattern_of(module), module.layer, own);
    // The names with transformers 5, where these are parameters.
    if (module.target == "gate") add("mlp.gate.weight", module.layer, own);
    if (module.target == "w2") add("mlp.experts.down_proj", module.layer, own);
    if (module.target != "w1") continue;
    // PEFT doubles rank and alpha of the configuration for the two; its own pattern comes last. A
    // rank of 0 makes it refuse what it would read with one scale for both.
    const auto both = packed(module, *find_module(all_.modules, module.layer, "w3"), all_.rslora);
    const std::string pattern = "mlp.experts.gate_up_proj";
    ranks.add(pattern, module.layer, both ? both->rank : 0, 2 * default_rank);
    if (both) alphas.add(pattern, module.layer, both->alpha, 2 * alpha);
  }
  ordered_json json;
  json["peft_type"] = "LORA";
  json["peft_version"] = kPeftVersion;
  json["task_type"] = "CAUSAL_LM";
  json["base_model_name_or_path"] =
      all_.base_model.empty() ? ordered_json(nullptr) : ordered_json(all_.base_model);
  json["r"] = rank;
  json["lora_alpha"] = alphas.number(alpha);
  // PEFT refuses any dropout on parameters; only training has one.
  json["lora_dropout"] = on_parameters() ? 0 : all_.dropout;
  json["use_rslora"] = all_.rslora;
  json["use_dora"] = false;
  json["bias"] = "none";
  json["fan_in_fan_out"] = false;
  json["inference_mode"] = true;
  json["init_lora_weights"] = true;
  json["modules_to_save"] = nullptr;
  json["target_modules"] = target_modules_;
  if (!target_parameters_.empty()) json["target_parameters"] = target_parameters_;
  json["rank_pattern"] = ranks.json();
  json["alpha_pattern"] = alphas.json();
  return json.dump(2) + "\n";
}

std::vector<std::string> PeftLayout::notes() const {
  std::vector<std::string> notes;
  if (on_parameters() && all_.dropout > 0)
    notes.push_back(
        "PEFT has no dropout on routers and experts, so adapter_config.json says lora_dropout 0; "
        "the updates are the same");
  for (const AdapterModule& module : all_.modules) {
    if (module.target != "w1") continue;
    if (packed(module, *find_module(all_.modules, module.layer, "w3"), all_.rslora)) continue;
    notes.push_back(
        "PEFT with transformers 5 packs w1 and w3 under one scale and will refuse this adapter, "
        "in which they have two; give both the same alpha / rank, or use mixtral merge");
    break;
  }
  return notes;
}

}  // namespace mixtral
