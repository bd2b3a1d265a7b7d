#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "io/json.h"
#include "tensor/dtype.h"

namespace mixtral {

/// Caps of a config.json, far above what is in one.
inline constexpr JsonLimits kConfigLimits{.bytes = uint64_t{4} << 20, .depth = 32};

/// The shape and constants of a Mixtral: what config.json says. The letters are those used
/// throughout (docs/architecture.md).
struct ModelConfig {
  int64_t vocab_size = 32000;         // V
  int64_t hidden_size = 4096;         // D
  int64_t intermediate_size = 14336;  // F, of one expert
  int64_t num_layers = 32;            // L
  int64_t num_heads = 32;             // H
  int64_t num_kv_heads = 8;           // G
  int64_t head_dim = 128;             // h
  int64_t num_experts = 8;            // E
  int64_t experts_per_token = 2;      // k
  int64_t max_positions = 131072;
  double rms_norm_eps = 1e-5;
  double rope_theta = 1e6;
  double initializer_range = 0.02;      // deviation of random weights
  int64_t sliding_window = 0;           // tokens a token sees, itself included; 0: all
  bool tie_embeddings = false;          // the output matrix is the embedding
  double router_aux_loss_coef = 0.001;  // of the load-balancing loss
  int64_t bos_id = 1;                   // -1: none
  std::vector<int64_t> eos_ids = {2};   // any of them ends a text; may be empty
  int64_t pad_id = -1;                  // -1: none
  Dtype dtype = Dtype::f32;             // of the weights on disk, as config.json names it
  bool dtype_is_open = false;           // config.json leaves it to the weights ("auto", or no word)
  // Of training alone, in transformers; see refuse_training_noise().
  double attention_dropout = 0;
  double router_jitter_noise = 0;

  friend bool operator==(const ModelConfig&, const ModelConfig&) = default;

  /// Reads the object of a config.json as transformers 4 or 5 writes it; absent keys have the
  /// defaults above, which are those of transformers' MixtralConfig. Throws Error naming source,
  /// key and rule when the model is no Mixtral, needs something this program lacks (rope scaling,
  /// another activation, quantized weights), or validate() fails.
  static ModelConfig parse(const Json& json);

  /// The same, with the begin, end and padding tokens of a generation_config.json (may be null),
  /// which win there as in transformers.
  static ModelConfig parse(const Json& config, const Json* generation);

  /// Reads `directory`/config.json and, where it exists, the begin, end and padding tokens of
  /// generation_config.json, which win there as in transformers.
  static ModelConfig load(const std::filesystem::path& directory);

  /// Writes config.json, with the names that every tool reads (rope_theta, torch_dtype), and
  /// generation_config.json into `directory`.
  void save(const std::filesystem::path& directory) const;

  /// The text of config.json.
  std::string to_json() const;

  /// Throws Error beginning "SOURCE: KEY" unless every field is in its range and they fit together.
  void validate(std::string_view source) const;
};

/// Throws Error where the configuration asks for noise in training that this program does not make:
/// attention_dropout or router_jitter_noise. They do not matter for inference.
void refuse_training_noise(const ModelConfig& config, std::string_view source);

/// How many parameters a model has, by part. Norms are the two of each layer and the last one.
struct ParameterCount {
  int64_t embedding = 0;  // V·D
  int64_t attention = 0;  // L·(2·D·H·h + 2·D·G·h)
  int64_t router = 0;     // L·E·D
  int64_t experts = 0;    // L·E·3·D·F
  int64_t norms = 0;      // (2·L + 1)·D
  int64_t head = 0;       // V·D, or 0 when tied

  int64_t total = 0;   // the sum of the above
  int64_t active = 0;  // in matrix products for a token: attention, router, k experts, D·V
};
ParameterCount count_parameters(const ModelConfig& config);

/// Floating-point operations a token of training costs at this context length: 6 an active
/// parameter, and causal attention 6·L·H·h·T. Without credit for recomputing.
double training_flops_per_token(const ModelConfig& config, int64_t context);

/// The built-in configurations' names: tiny, small, seed, 8x7b.
const std::vector<std::string>& builtin_config_names();
bool is_builtin_config(std::string_view name);
/// Throws UsageError listing the names, with the nearest one, when there is none such.
ModelConfig builtin_config(std::string_view name);

}  // namespace mixtral
