#include "model/peft_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/error.h"
#include "model/adapter_file.h"

namespace mixtral {
namespace {

// What PEFT writes for gate_up_proj when it packs w1 and w3.
constexpr const char* kPackedGateUp = R"(.*\.gate_up_proj)";

/// Whether a setting is on: neither absent nor null, false, empty or "none".
bool is_on(const Json* value) {
  if (!value || value->is_null()) return false;
  if (value->is_bool()) return value->as_bool();
  if (value->is_array()) return !value->items().empty();
  if (value->is_object()) return !value->members().empty();
  if (value->is_string()) return value->as_string() != "none";
  return true;
}

/// Settings that belong to how the adapter was trained: its updates are LoRA's all the same.
bool is_of_training(std::string_view key) {
  return key == "use_rslora" || key == "loftq_config" || key == "eva_config" ||
         key == "corda_config" || key == "lora_ga_config" || key == "velora_config" ||
         key == "megatron_config" || key == "runtime_config";
}

/// Variants of LoRA, those that PEFT may add later included: each has a use_… or a …_config.
bool is_variant(std::string_view key) {
  static constexpr std::string_view kOthers[] = {"fan_in_fan_out", "lora_bias", "layer_replication",
                                                 "alora_invocation_tokens",
                                                 "trainable_token_indices"};
  return std::ranges::find(kOthers, key) != std::end(kOthers) ||
         ((key.starts_with("use_") || key.ends_with("_config")) && !is_of_training(key));
}

void refuse_variants(const Json& config) {
  const std::string& kind = config.at("peft_type").as_string();
  if (kind != "LORA")
    throw Error(fmt::format("{}: peft_type is {}; only LORA is known here", config.where(),
                            printable(kind)));
  for (const auto& [key, value] : config.members())
    if (is_variant(key) && is_on(&value))
      throw Error(fmt::format("{}: {} is set; this program knows plain LoRA only", config.where(),
                              printable(key)));
  if (const Json* bias = find_set(config, "bias"); bias && bias->as_string() != "none")
    throw Error(fmt::format("{}: bias is '{}', but a Mixtral has no biases", config.where(),
                            printable(bias->as_string())));
}

std::string lower_case(std::string text) {
  for (char& c : text)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return text;
}

/// PiSSA and its like subtract the adapter's first value from the base, so that the adapter means
/// nothing on the plain base.
void refuse_changed_base(const Json& config) {
  const Json* how = find_set(config, "init_lora_weights");
  if (!how || how->is_bool()) return;
  const std::string name = lower_case(how->as_string());
  for (const char* plain : {"gaussian", "eva", "orthogonal", "mica"})
    if (name == plain) return;
  const bool known = name.starts_with("pissa") || name == "olora" || name.starts_with("corda") ||
                     name == "loftq" || name == "lora_ga";
  throw Error(fmt::format(
      "{}: init_lora_weights is '{}', {}; convert the adapter with PEFT's "
      "save_pretrained(DIR, path_initial_model_for_weight_conversion=INITIAL_ADAPTER), or merge it "
      "into its own base there",
      config.where(), printable(how->as_string()),
      known ? "an initialisation that changed the base's weights, so that the adapter does not fit "
              "the plain base"
            : "which is not known here and may have changed the base's weights"));
}

std::vector<std::string> strings_of(const Json& list) {
  std::vector<std::string> result;
  for (const Json& item : list.items()) result.push_back(item.as_string());
  return result;
}

int64_t checked_rank(const Json& value, int64_t least) {
  const int64_t rank = value.as_int();
  if (rank >= least && rank <= kMostAdapterRank) return rank;
  throw Error(fmt::format("{}: expected a rank from {} to {}, found {}", value.where(), least,
                          kMostAdapterRank, rank));
}

/// Whether "0.18.1" is before 0.19; nothing for what is no version.
std::optional<bool> before_0_19(std::string_view version) {
  int major = 0, minor = 0;
  const char* begin = version.data();
  const char* end = begin + version.size();
  const auto first = std::from_chars(begin, end, major);
  if (first.ec != std::errc() || first.ptr == end || *first.ptr != '.') return std::nullopt;
  const auto second = std::from_chars(first.ptr + 1, end, minor);
  if (second.ec != std::errc()) return std::nullopt;
  return major == 0 && minor < 19;
}

/// Adds a pattern as Python adds to a dict: in its place when it is there, else last.
void put(std::vector<PatternMap::Entry>& entries, const char* pattern, double value) {
  for (PatternMap::Entry& entry : entries) {
    if (entry.pattern != pattern) continue;
    entry.value = value;
    return;
  }
  entries.push_back({pattern, value});
}

}  // namespace

const Json* find_set(const Json& object, std::string_view key) {
  const Json* value = object.find(key);
  return value && !value->is_null() ? value : nullptr;
}

double checked_factor(double factor, const std::string& where) {
  if (std::abs(factor) <= kMostAdapterFactor) return factor;
  throw Error(fmt::format("{}: expected a number from {} to {}, found {}", where,
                          -kMostAdapterFactor, kMostAdapterFactor, factor));
}

double checked_dropout(const Json& value) {
  const double dropout = value.as_double();
  if (dropout >= 0 && dropout < 1) return dropout;
  throw Error(
      fmt::format("{}: expected a share from 0 to below 1, found {}", value.where(), dropout));
}

PackedTargets packed_targets(std::span<const std::string> parameters, int64_t layer) {
  const auto targeted = [&](std::string_view parameter) {
    const std::string key = fmt::format("model.layers.{}.mlp.experts.{}", layer, parameter);
    return std::ranges::any_of(parameters, [&](const std::string& target) {
      return key == target || key.ends_with("." + target);
    });
  };
  return {.gate_up = targeted("gate_up_proj"), .down = targeted("down_proj")};
}

ConvertedTargets converted_targets(std::span<const std::string> target_modules) {
  const auto named = [&](const std::string& name) {
    return std::ranges::any_of(target_modules, [&](const std::string& target) {
      return target == name || target.ends_with("." + name);
    });
  };
  ConvertedTargets converted;
  if (named("gate")) converted.parameters.push_back("gate.weight");
  const bool w1 = named("w1"), w3 = named("w3");
  if (w1 || w3) converted.parameters.push_back("gate_up_proj");
  if (named("w2")) converted.parameters.push_back("down_proj");
  converted.gate_up_of_pair = w1 && w3;
  return converted;
}

PeftConfig::PeftConfig(const Json& config) {
  refuse_variants(config);
  refuse_changed_base(config);
  saves_modules_ = is_on(config.find("modules_to_save"));
  if (const Json* flag = find_set(config, "use_rslora")) rslora_ = flag->as_bool();
  if (const Json* value = find_set(config, "lora_dropout")) dropout_ = checked_dropout(*value);
  if (const Json* base = find_set(config, "base_model_name_or_path"); base && base->is_string())
    base_model_ = base->as_string();
  if (const Json* version = find_set(config, "peft_version"); version && version->is_string())
    exchanged_ = before_0_19(version->as_string());
  rank_ = checked_rank(config.at("r"), 1);
  alpha_ = checked_factor(config.at("lora_alpha").as_double(), config.where() + ": lora_alpha");

  std::vector<PatternMap::Entry> ranks, alphas;
  // A rank of 0 keeps PEFT from loading what it would misread (peft_writer.cc).
  if (const Json* patterns = find_set(config, "rank_pattern"))
    for (const auto& [key, value] : patterns->members())
      ranks.push_back({key, static_cast<double>(checked_rank(value, 0))});
  if (const Json* patterns = find_set(config, "alpha_pattern"))
    for (const auto& [key, value] : patterns->members())
      alphas.push_back({key, checked_factor(value.as_double(), value.where())});

  if (const Json* parameters = find_set(config, "target_parameters"))
    parameters_ = strings_of(*parameters);
  std::vector<std::string> modules;
  if (const Json* targets = find_set(config, "target_modules")) {
    if (targets->is_array()) {
      modules = strings_of(*targets);
    } else if (lower_case(targets->as_string()) == "all-linear") {
      modules = {"gate", "w1", "w2", "w3"};
    }
  }
  ConvertedTargets converted = converted_targets(modules);
  std::ranges::move(converted.parameters, std::back_inserter(parameters_));
  if (converted.gate_up_of_pair) {
    put(ranks, kPackedGateUp, static_cast<double>(2 * rank_));
    put(alphas, kPackedGateUp, 2 * alpha_);
  }
  ranks_ = PatternMap(std::move(ranks), config.where() + ": rank_pattern");
  alphas_ = PatternMap(std::move(alphas), config.where() + ": alpha_pattern");
}

int64_t PeftConfig::rank_of(std::string_view name) const {
  const auto found = ranks_.find(name);
  return found ? static_cast<int64_t>(*found) : rank_;
}

double PeftConfig::alpha_of(std::string_view name) const {
  return alphas_.find(name).value_or(alpha_);
}

}  // namespace mixtral
