#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "io/json.h"
#include "model/pattern_map.h"

namespace mixtral {

/// Which of the experts' packed parameters an adapter of PEFT is on, in one layer.
struct PackedTargets {
  bool gate_up = false, down = false;

  bool both() const { return gate_up && down; }
};
/// `parameters` are target_parameters: a parameter is meant by its name or by the end of it that
/// follows a dot.
PackedTargets packed_targets(std::span<const std::string> parameters, int64_t layer);

/// What PEFT makes of the names w1, w2, w3 and gate in target_modules for a model of transformers
/// 5, which has packed experts: the parameters that stand for them.
struct ConvertedTargets {
  std::vector<std::string> parameters;  // to add to target_parameters
  bool gate_up_of_pair = false;         // gate_up_proj is w1 and w3: rank and alpha are doubled
};
ConvertedTargets converted_targets(std::span<const std::string> target_modules);

/// adapter_config.json of a PEFT adapter, as PEFT 0.21 with transformers 5 understands it. Absent
/// and null are the same.
class PeftConfig {
 public:
  /// Throws Error naming file and key when a value is out of range, or asks for what this program
  /// does not compute: another method than LoRA, one of its variants, an initialisation that
  /// changed the base's weights.
  explicit PeftConfig(const Json& config);

  bool rslora() const { return rslora_; }
  double dropout() const { return dropout_; }
  const std::string& base_model() const { return base_model_; }
  bool saves_modules() const { return saves_modules_; }  // modules_to_save is set
  PackedTargets packed(int64_t layer) const { return packed_targets(parameters_, layer); }
  /// Whether it was written before PEFT 0.19, which exchanged input and output of packed
  /// parameters; nothing when the file does not say who wrote it.
  std::optional<bool> exchanged() const { return exchanged_; }

  /// Rank and alpha of a module ("model.layers.0.self_attn.q_proj") or of a parameter
  /// ("model.layers.0.mlp.experts.gate_up_proj").
  int64_t rank_of(std::string_view name) const;
  double alpha_of(std::string_view name) const;

 private:
  bool rslora_ = false, saves_modules_ = false;
  double dropout_ = 0, alpha_ = 0;
  int64_t rank_ = 0;
  std::string base_model_;
  std::optional<bool> exchanged_;
  std::vector<std::string> parameters_;  // target_parameters, with what stands for target_modules
  PatternMap ranks_, alphas_;
};

/// Checks that a factor of updates (alpha, or mlx-lm's scale) is one that this program computes
/// with. Throws Error beginning with `where`.
double checked_factor(double factor, const std::string& where);
/// The same for dropout, from 0 to below 1.
double checked_dropout(const Json& value);
/// The member of an object, or null when it is absent or null itself.
const Json* find_set(const Json& object, std::string_view key);

}  // namespace mixtral
