#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/train_options.h"
#include "model/adapter_file.h"
#include "train/preference.h"

namespace mixtral {

/// What `mixtral finetune` trains, and by which objective.
enum class FinetuneMethod {
  lora,      // an adapter, by next-token prediction
  full,      // the model's own weights, by the same
  dpo,       // an adapter, by preference pairs
  dpo_full,  // the model's own weights, by these
};
FinetuneMethod parse_finetune_method(const std::string& name);
inline bool trains_adapter(FinetuneMethod m) {
  return m == FinetuneMethod::lora || m == FinetuneMethod::dpo;
}
inline bool uses_preferences(FinetuneMethod m) {
  return m == FinetuneMethod::dpo || m == FinetuneMethod::dpo_full;
}

/// --targets: names of adapter_targets() and of groups of them (attention, experts, router, all),
/// separated by commas; each target once. Throws UsageError listing the names.
std::vector<std::string> parse_targets(const std::string& text);

/// --experts: experts by number, the same in each layer, or the most used ones of each layer.
struct ExpertChoice {
  std::vector<int64_t> numbers;
  int64_t top = 0;
};
/// "1,5" or "top:3". Throws UsageError.
ExpertChoice parse_experts(const std::string& text);

/// The flags of `mixtral finetune`.
struct FinetuneOptions : TrainOptions {
  FinetuneOptions();

  std::string model, method = "lora", adapter;
  std::string targets = "q_proj,v_proj,gate", experts, target_ranks, target_alphas;
  std::optional<int64_t> rank;
  std::optional<double> alpha, scale, dropout;
  bool rslora = false, freeze_router = false;
  int64_t num_layers = 0;
  // dpo
  std::string reference, dpo_loss = "sigmoid";
  double beta = 0.1, label_smoothing = 0;

  void add_to(cli::App& app, RunConfig& config);
  /// After parsing: settles what follows from the method. Throws UsageError for flags that make no
  /// sense together.
  void settle(const RunConfig& config);

  FinetuneMethod kind() const { return parse_finetune_method(method); }
  /// The new adapter that the flags describe, without --experts top.
  AdapterSpec adapter_spec() const;
  PreferenceSettings preference_settings(const Objective& objective) const;
  double default_lr(const ModelConfig& config) const;
};

}  // namespace mixtral
