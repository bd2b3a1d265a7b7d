#include "cli/finetune_options.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>

namespace mixtral {
namespace {

constexpr int64_t kIterations = 1000;
constexpr int64_t kRank = 8;
constexpr double kAlpha = 16;

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> items;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(separator, begin), text.size());
    std::string item = text.substr(begin, end - begin);
    item.erase(0, item.find_first_not_of(' '));
    item.erase(item.find_last_not_of(' ') + 1);
    if (!item.empty()) items.push_back(std::move(item));
    begin = end + 1;
  }
  return items;
}

template <class T>
std::optional<T> parse_number(const std::string& text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

/// The targets that a name or a group's name stands for.
std::vector<std::string> members_of(const std::string& name) {
  if (name == "attention") return {"q_proj", "k_proj", "v_proj", "o_proj"};
  if (name == "experts") return {"w1", "w2", "w3"};
  if (name == "router") return {"gate"};
  if (name == "all") return {"q_proj", "k_proj", "v_proj", "o_proj", "gate", "w1", "w2", "w3"};
  adapter_target(name);  // refuses unknown ones
  return {name};
}

/// "q_proj=8,w1=4" as pairs; groups' names stand for their members, of which one at least must be
/// among the targets.
template <class T>
std::vector<std::pair<std::string, T>> parse_per_target(const char* flag, const std::string& text,
                                                        const std::vector<std::string>& targets) {
  std::vector<std::pair<std::string, T>> result;
  for (const std::string& item : split(text, ',')) {
    const size_t equals = item.find('=');
    const auto value =
        equals == std::string::npos ? std::nullopt : parse_number<T>(item.substr(equals + 1));
    if (!value || !(*value > 0))
      throw UsageError(
          fmt::format("{}: expected TARGET=NUMBER such as q_proj=8, found '{}'", flag, item));
    const auto members = members_of(item.substr(0, equals));
    if (std::ranges::find_first_of(members, targets) == members.end())
      throw UsageError(
          fmt::format("{} {}: what is tuned is {}; add it to --targets, or leave it out", flag,
                      item, fmt::join(targets, ", ")));
    for (const std::string& target : members) result.emplace_back(target, *value);
  }
  return result;
}

}  // namespace

FinetuneMethod parse_finetune_method(const std::string& name) {
  if (name == "lora") return FinetuneMethod::lora;
  if (name == "full") return FinetuneMethod::full;
  if (name == "dpo") return FinetuneMethod::dpo;
  if (name == "dpo-full") return FinetuneMethod::dpo_full;
  throw UsageError(fmt::format("--method is lora, full, dpo or dpo-full, not '{}'", name));
}

std::vector<std::string> parse_targets(const std::string& text) {
  std::vector<std::string> targets;
  for (const std::string& name : split(text, ','))
    for (const std::string& target : members_of(name))
      if (std::ranges::find(targets, target) == targets.end()) targets.push_back(target);
  return targets;
}

ExpertChoice parse_experts(const std::string& text) {
  ExpertChoice choice;
  if (text.starts_with("top:")) {
    const auto top = parse_number<int64_t>(text.substr(4));
    if (!top || *top < 1)
      throw UsageError(fmt::format("--experts {}: expected top:N with N at least 1", text));
    choice.top = *top;
    return choice;
  }
  for (const std::string& item : split(text, ',')) {
    const auto number = parse_number<int64_t>(item);
    if (!number || *number < 0)
      throw UsageError(fmt::format(
          "--experts {}: '{}' is no expert; expected numbers such as 1,5, or top:3", text, item));
    if (std::ranges::find(choice.numbers, *number) == choice.numbers.end())
      choice.numbers.push_back(*number);
  }
  return choice;
}

FinetuneOptions::FinetuneOptions() {
  default_iterations = kIterations;
  weight_decay = 0;
  sample_tokens = 0;
  sample_prompt = "";
}

void FinetuneOptions::add_to(cli::App& app, RunConfig& config) {
  const auto fixed = OnResume::run("the checkpoint was trained that way");
  const char *model_group = "Model", *adapter_group = "Adapter (lora, dpo)";
  config.group(model_group);
  config.add("-m,--model", model,
             "The model to tune: a model directory or a run. A run that trained an adapter: its "
             "base, with that adapter",
             fixed);
  config.adopt(common.add_random_weights(app)->group(model_group)->take_last(),
               common.random_weights, fixed);
  config
      .add("--method", method,
           "lora: an adapter on a model that stays as it is; full: all weights; dpo, dpo-full: the "
           "same on preference pairs",
           fixed)
      ->check(cli::IsMember({"lora", "full", "dpo", "dpo-full"}));
  config.group(adapter_group);
  config.add("--adapter,--lora", adapter,
             "Start from this adapter (PEFT or mlx-lm), whose rank, alpha and targets count",
             fixed);
  config.adopt(common.add_quantize_base(app)->group(adapter_group)->take_last(),
               common.quantize_base, fixed);
  config.add("--targets", targets,
             "What gets an update, comma-separated: q_proj, k_proj, v_proj, o_proj, gate (the "
             "router), w1, w2, w3 (the experts), gate_up_proj, down_proj (all experts of a layer "
             "at once, as PEFT fuses them), lm_head; or groups: attention, experts, router, all",
             fixed);
  config.add("--rank,--lora-rank", rank, fmt::format("Rank (default: {})", kRank), fixed)
      ->check(count_between(1, 1 << 16));
  cli::Option* alpha_option =
      config.add("--alpha,--lora-alpha", alpha,
                 fmt::format("Updates are scaled by alpha / rank (default: {})", kAlpha), fixed);
  config.add("--scale", scale, "Instead of --alpha: the scale itself", fixed)
      ->excludes(alpha_option);
  config.add("--rslora", rslora, "Scale by alpha / sqrt(rank) instead", fixed);
  config.add("--target-ranks", target_ranks, "Other ranks of some targets: q_proj=8,w1=4", fixed);
  config.add("--target-alphas", target_alphas, "Other alphas of some targets: gate=8", fixed);
  config
      .add("--dropout,--lora-dropout", dropout,
           "Probability that an input of an update is dropped in training (default: 0, or the "
           "--adapter's)",
           fixed)
      ->check(between(0, 0.99));
  config.add("--experts", experts,
             "Of w1, w2, w3, only these experts: 1,5; or top:3, the three of each layer that the "
             "training data go to most",
             fixed);
  config
      .add("--num-layers", num_layers,
           "Tune the last so many layers only; 0: all (and, with full, "
           "embedding and output)",
           fixed)
      ->check(at_least(0));
  config.add("--freeze-router", freeze_router, "Leave the routers as they are", fixed);
  config.group("Preferences (dpo)");
  config.add("--reference", reference,
             "The model to compare with (default: --model; an adapter's base, with the adapter "
             "off, needs no second copy)",
             fixed);
  config.add("--beta", beta,
             "How strongly the reference holds: rewards are beta times the "
             "difference of log-probabilities");
  config.add("--label-smoothing", label_smoothing, "Assumed fraction of mislabelled pairs");
  config
      .add("--dpo-loss", dpo_loss,
           "sigmoid; normalized: of means over the tokens; ipo: a squared distance of such means")
      ->check(cli::IsMember({"sigmoid", "normalized", "ipo"}));
  add_data(config);
  app.get_option("--data")->description(
      "Directory with train.jsonl and, where there are, val.jsonl and test.jsonl (or .txt), or one "
      "file. Lines: {\"text\"}, {\"messages\"}, {\"prompt\",\"completion\"} or "
      "{\"input_ids\",\"labels\"}; for dpo {\"prompt\",\"chosen\",\"rejected\"}");
  config
      .add("--chat-template", chat_template,
           "How {\"messages\"} become text (default: the model's own, else mistral-v1)",
           OnResume::run("the model was trained with it"))
      ->check(cli::IsMember({"mistral-v1", "mistral-hf-old", "seed"}));
  add_optimization(config);
  app.get_option("--lr")->description(
      "Peak learning rate (default: by the model's width and --method)");
  add_run(app, config);
  add_common(app, config);
}

void FinetuneOptions::settle(const RunConfig& config) {
  const FinetuneMethod method_now = kind();
  if (model.empty()) throw UsageError("--model is missing: a model directory or run to tune");
  // A run's config.yaml names every flag, so a default value says nothing about what is wanted.
  const FinetuneOptions plain;
  const std::vector<std::pair<const char*, bool>> of_new_adapters = {
      {"targets", targets != plain.targets},
      {"rank", rank.has_value()},
      {"alpha", alpha.has_value()},
      {"scale", scale.has_value()},
      {"rslora", rslora},
      {"target-ranks", !target_ranks.empty()},
      {"target-alphas", !target_alphas.empty()},
      {"experts", !experts.empty()}};
  // These choose among all weights, too, where there is no adapter.
  const std::vector<std::pair<const char*, bool>> of_choices = {{"num-layers", num_layers > 0},
                                                                {"freeze-router", freeze_router}};
  const std::vector<std::pair<const char*, bool>> of_preferences = {
      {"reference", !reference.empty()},
      {"beta", beta != plain.beta},
      {"label-smoothing", label_smoothing != plain.label_smoothing},
      {"dpo-loss", dpo_loss != plain.dpo_loss}};
  if (!trains_adapter(method_now)) {
    if (!adapter.empty())
      throw UsageError(fmt::format(
          "--adapter: --method {} trains the model's own weights; merge the adapter first",
          method));
    if (common.quantization())
      throw UsageError(fmt::format(
          "--quantize-base {}: --method {} trains the model's own weights, which must stay as they "
          "are; use --method lora or dpo, or leave it out",
          common.quantize_base, method));
    for (const auto& [flag, given] : of_new_adapters)
      if (given)
        throw UsageError(
            fmt::format("--{} is for adapters; --method {} trains the model's own "
                        "weights",
                        flag, method));
  } else if (!adapter.empty() && !resuming) {
    for (const auto* flags : {&of_new_adapters, &of_choices})
      for (const auto& [flag, given] : *flags)
        if (given)
          throw UsageError(fmt::format(
              "--{} describes a new adapter, but --adapter {} is as it is; leave one out", flag,
              adapter));
  } else if (adapter.empty()) {
    rank = rank.value_or(kRank);
    if (!scale) alpha = alpha.value_or(kAlpha);
    dropout = dropout.value_or(0);
  }
  pairs = uses_preferences(method_now);
  if (!pairs) {
    for (const auto& [flag, given] : of_preferences)
      if (given) throw UsageError(fmt::format("--{} is for --method dpo", flag));
  } else if (!config.is_set("aux-loss")) {
    aux_loss = "off";  // the reference knows no balance; on request
  }
  if (config.is_set("sample-prompt") && !config.is_set("sample-tokens")) sample_tokens = 200;
}

AdapterSpec FinetuneOptions::adapter_spec() const {
  AdapterSpec spec;
  spec.targets = parse_targets(targets);
  if (freeze_router && std::erase(spec.targets, "gate") > 0 && spec.targets.empty())
    throw UsageError(fmt::format(
        "--freeze-router leaves nothing of --targets {} to tune: gate is the router; leave it out, "
        "or add targets such as q_proj,v_proj",
        targets));
  spec.rank = rank.value_or(kRank);
  spec.rslora = rslora;
  const auto r = static_cast<double>(spec.rank);
  spec.alpha = scale ? *scale * (rslora ? std::sqrt(r) : r) : alpha.value_or(kAlpha);
  spec.dropout = dropout.value_or(0);
  spec.last_layers = num_layers;
  spec.rank_of = parse_per_target<int64_t>("--target-ranks", target_ranks, spec.targets);
  spec.alpha_of = parse_per_target<double>("--target-alphas", target_alphas, spec.targets);
  if (scale) {  // the same scale, whatever the rank
    for (const auto& [target, other] : spec.rank_of) {
      const auto each = static_cast<double>(other);
      spec.alpha_of.insert(spec.alpha_of.begin(),
                           {target, *scale * (rslora ? std::sqrt(each) : each)});
    }
  }
  if (experts.empty()) return spec;
  spec.experts = parse_experts(experts).numbers;
  const bool any = std::ranges::any_of(
      spec.targets, [](const std::string& t) { return adapter_target(t).per_expert; });
  if (!any)
    throw UsageError(fmt::format(
        "--experts {}: none of --targets {} is an expert's; add w1, w2 or w3", experts, targets));
  return spec;
}

PreferenceSettings FinetuneOptions::preference_settings(const Objective& objective) const {
  PreferenceSettings settings{.loss = parse_preference_loss(dpo_loss),
                              .beta = beta,
                              .label_smoothing = label_smoothing,
                              .objective = objective,
                              .recompute = recompute_rule()};
  settings.validate();
  return settings;
}

double FinetuneOptions::default_lr(const ModelConfig& config) const {
  const double scratch = defaults::learning_rate(config);
  switch (kind()) {
    case FinetuneMethod::lora:
      return scratch;
    case FinetuneMethod::full:
      return scratch / 4;
    case FinetuneMethod::dpo:
      return scratch / 4;
    case FinetuneMethod::dpo_full:
      return scratch / 40;
  }
  return scratch;
}

}  // namespace mixtral
