#include "cli/experts_output.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>

#include "backends/registry.h"
#include "model/memory_plan.h"

namespace mixtral {
namespace {

using nlohmann::ordered_json;

/// The experts of the first source that each one is made of: "0+3".
std::string members(const ExpertRecipe& recipe) {
  std::vector<int64_t> experts;
  experts.reserve(recipe.shares.size());
  for (const ExpertShare& share : recipe.shares) experts.push_back(share.expert);
  return fmt::format("{}", fmt::join(experts, "+"));
}

/// The share of the layer's load that the experts had which are left.
double load_left(const LayerEdit& layer, const LayerStatistics& statistics) {
  double left = 0, all = 0;
  for (const int64_t load : statistics.load) all += static_cast<double>(load);
  for (const ExpertRecipe& recipe : layer.experts)
    for (const ExpertShare& share : recipe.shares)
      left += static_cast<double>(statistics.load[static_cast<size_t>(share.expert)]);
  return all > 0 ? left / all : 0;
}

ordered_json layer_json(const LayerEdit& layer, const LayerStatistics& statistics) {
  ordered_json experts = ordered_json::array();
  for (const ExpertRecipe& recipe : layer.experts) {
    ordered_json from = ordered_json::array();
    for (const ExpertShare& share : recipe.shares)
      from.push_back({{"expert", share.expert}, {"weight", share.weight}});
    experts.push_back(from);
  }
  return {{"experts", experts},
          {"load", statistics.load},
          {"reap", statistics.saliency},
          {"load_left", load_left(layer, statistics)}};
}

void print_json(const ExpertsOptions& o, const ModelEdit& edit, const ExpertStatistics* statistics,
                const SurgeryResult& result) {
  const Receipt& receipt = result.receipt;
  ordered_json json{{"out", o.out},
                    {"receipt", receipt_path(o.out).string()},
                    {"operation", edit.operation},
                    {"experts", edit.config.num_experts},
                    {"experts_per_token", edit.config.experts_per_token},
                    {"parameters", count_parameters(edit.config).total},
                    {"tensors", receipt.tensors.size()}};
  if (receipt.logits.compared) json["logits_difference"] = receipt.logits.difference;
  if (result.quality)
    json["quality"] = {{"tokens", result.quality->tokens},
                       {"perplexity_before", result.quality->before},
                       {"perplexity_after", result.quality->after},
                       {"kl_divergence", result.quality->divergence},
                       {"top1_agreement", result.quality->top_agreement}};
  if (statistics)
    for (size_t i = 0; i < edit.layers.size(); ++i)
      json["layers"].push_back(layer_json(edit.layers[i], statistics->layers[i]));
  fmt::print("{}\n", json.dump());
}

void print_text(const ExpertsOptions& o, const ModelEdit& edit, const ExpertStatistics* statistics,
                const SurgeryResult& result) {
  const Receipt& receipt = result.receipt;
  fmt::print("{}: {} experts, {} a token; {:.6g} million parameters, {} of weights\n", o.out,
             edit.config.num_experts, edit.config.experts_per_token,
             static_cast<double>(count_parameters(edit.config).total) / 1e6,
             format_bytes(static_cast<int64_t>(receipt.weight_bytes)));
  fmt::print("{}\n", edit.operation);
  if (statistics)
    for (size_t i = 0; i < edit.layers.size(); ++i) {
      std::vector<std::string> experts;
      for (const ExpertRecipe& recipe : edit.layers[i].experts) experts.push_back(members(recipe));
      fmt::print("layer {}: experts {}, which took {:.1f}% of the load\n", i,
                 fmt::join(experts, " "), 100 * load_left(edit.layers[i], statistics->layers[i]));
    }
  if (!receipt.lossless) fmt::print("numbers were rounded to the type that was asked for\n");
  if (result.quality)
    fmt::print(
        "perplexity {:.4f} before, {:.4f} after ({:+.2f}%); the same most likely token at {:.1f}% "
        "of {} places\n",
        result.quality->before, result.quality->after, 100 * result.quality->increase(),
        100 * result.quality->top_agreement, result.quality->tokens);
  fmt::print("receipt: {}\n", receipt_path(o.out).string());
}

}  // namespace

void ExpertsOptions::add_to(cli::App& command) {
  command.add_option("-o,--out", out, "What to write: a directory, or FILE.gguf")->required();
  command.add_option("--type", type,
                     "Type of the weights: f32, f16 or bf16, in GGUF also q8_0 and others; "
                     "otherwise the source's own, or f32 of quantized ones");
  command.add_option("--tokens", tokens, "Tokens of a text that are looked at, at most")
      ->capture_default_str()
      ->check(cli::Range(1, 1 << 24));
  command.add_option("-c,--context", context, "Tokens of a sequence of them")
      ->capture_default_str()
      ->check(cli::Range(2, 1 << 20));
  TargetOptions::add_to(command);
  command.remove_option(command.get_option("--group-size"));
}

ConvertOptions ExpertsOptions::target() const {
  const bool is_file = std::filesystem::path(out).extension() == ".gguf";
  const ModelFormat to = is_file ? ModelFormat::gguf : ModelFormat::hugging_face;
  return {.to = to,
          .type = TypeChoice(type, to, group_size),
          .out = out,
          .overwrite = overwrite,
          .vocabulary = !no_tokenizer,
          .compare = !no_check,
          .threads = common.threads};
}

ModelSource open_expert_source(const ExpertsOptions& o, const ModelSource::Names& names) {
  ModelSource source = open_source(o.common, names);
  source.refuse_adapter();
  check_target(source, o.target());
  if (o.overwrite) refuse_foreign(o.out);
  return source;
}

void run_surgery(const ExpertsOptions& o, const ModelEdit& edit,
                 const ExpertStatistics* statistics) {
  std::optional<HostBatch> text;
  if (!o.data.empty()) text = sample_text(*edit.sources.front(), o.data, o.sample());
  const auto backend = make_backend("cpu", o.common.threads);
  const SurgeryResult result = write_edited(*backend, edit, o.target(), text ? &*text : nullptr,
                                            conversion_progress(o.common));
  if (o.common.json)
    print_json(o, edit, statistics, result);
  else
    print_text(o, edit, statistics, result);
}

}  // namespace mixtral
