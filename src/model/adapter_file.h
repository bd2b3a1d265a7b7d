#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"

namespace mixtral {

/// What PEFT puts before a module's name.
inline constexpr std::string_view kPeftPrefix = "base_model.model.";

/// What a LoRA may be put on, under the names that configurations use. `gate_up_proj` and
/// `down_proj` are all experts of a layer at once, as PEFT's target_parameters has them: gate and
/// up then share an A. `w1`, `w2`, `w3` are one pair of matrices an expert.
struct AdapterTarget {
  std::string name;    // q_proj k_proj v_proj o_proj gate w1 w2 w3 gate_up_proj down_proj lm_head
  std::string module;  // in files, below "model.layers.L." or at the top
  bool per_layer = true;
  bool per_expert = false;  // a pair of matrices an expert
  bool fused = false;       // all experts in one pair of tensors
};
const std::vector<AdapterTarget>& adapter_targets();
/// Throws UsageError listing the names when there is none such.
const AdapterTarget& adapter_target(std::string_view name);

/// The largest factor of an update: alpha, or mlx-lm's scale; and the largest rank.
inline constexpr double kMostAdapterFactor = 1e6;
inline constexpr int64_t kMostAdapterRank = 65536;

/// alpha / rank, or alpha / sqrt(rank) (Kalajdzievski 2023, "rsLoRA").
double adapter_scale(double alpha, int64_t rank, bool rslora);

/// One low-rank update, as a file holds it: of one module, or of one module of several experts.
struct AdapterModule {
  int64_t layer = -1;            // −1 for lm_head
  std::string target;            // a name of adapter_targets()
  std::vector<int64_t> experts;  // of w1, w2, w3: those that are there; else empty
  int64_t rank = 0;
  double alpha = 0;
  double scale = 0;      // adapter_scale()
  std::vector<float> a;  // [G, r, I]: experts that are not there are zero; or empty when new
  std::vector<float> b;  // [G, rows, r]
};

/// Rows and columns of a target's weight, and how many groups (experts) it has.
struct TargetShape {
  int64_t groups = 1, rows = 0, inputs = 0;
};
TargetShape target_shape(const ModelConfig& config, std::string_view target);

/// A LoRA adapter in ordinary memory.
struct AdapterFile {
  bool rslora = false;
  double dropout = 0;
  std::string base_model;  // what it was trained on, as the file names it; may be empty
  std::vector<AdapterModule> modules;

  /// Reads a PEFT adapter (adapter_config.json, adapter_model.safetensors), an mlx-lm one
  /// (adapter_config.json, adapters.safetensors), one of Mistral's (lora.safetensors) or a GGUF
  /// file for a model of this configuration. Everything in the file must find its place: a tensor
  /// that matches nothing, a pair without its other half, a wrong shape, or a feature that this
  /// program lacks (DoRA, biases, an initialisation that changed the base) is an Error naming file
  /// and tensor. Copies of the base's tensors are compared with those of `base`, a model directory;
  /// they are an Error when they differ or `base` is empty.
  static AdapterFile load(const std::filesystem::path& directory, const ModelConfig& config,
                          const std::filesystem::path& base = {});
};

/// What a new adapter is to be.
struct AdapterSpec {
  std::vector<std::string> targets;  // names of adapter_targets()
  int64_t rank = 8;
  double alpha = 16;
  bool rslora = false;
  double dropout = 0;
  int64_t last_layers = 0;                             // tune this many of the last layers; 0: all
  std::vector<int64_t> experts;                        // of w1, w2, w3: these only; empty: all
  std::vector<std::vector<int64_t>> experts_of_layer;  // the same for each layer, or empty
  std::vector<std::pair<std::string, int64_t>> rank_of;  // for a target: another rank
  std::vector<std::pair<std::string, double>> alpha_of;  // for a target: another alpha
};
/// The modules of a new adapter, without values. Throws UsageError naming the flag.
AdapterFile new_adapter(const AdapterSpec& spec, const ModelConfig& config);

}  // namespace mixtral
