#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/numbers.h"
#include "base/printable.h"
#include "model/gguf_tensors.h"

namespace mixtral {
namespace {

constexpr std::string_view kArchitecture = "general.architecture";

/// Reads the keys "llama.*".
class ConfigReader {
 public:
  explicit ConfigReader(const GgufHeader& header) : header_(header) {}

  static std::string key(std::string_view name) { return fmt::format("llama.{}", name); }

  [[noreturn]] void fail(const std::string& of, const std::string& what) const {
    throw Error(fmt::format("{} {}", header_.where(of), what));
  }

  int64_t integer(std::string_view name, int64_t least, int64_t most,
                  std::optional<int64_t> otherwise = std::nullopt) const {
    const auto value = header_.integer(key(name));
    if (!value && otherwise) return *otherwise;
    if (!value) fail(key(name), "is missing, without which the model cannot be run");
    if (*value < least || *value > most)
      fail(key(name), fmt::format("is {}; expected {} to {}", *value, least, most));
    return *value;
  }

  double number(std::string_view name, double least, double most,
                std::optional<double> otherwise = std::nullopt) const {
    const auto value = header_.number(key(name));
    if (!value && otherwise) return *otherwise;
    if (!value) fail(key(name), "is missing, without which the model cannot be run");
    if (!(*value >= least && *value <= most))
      fail(key(name), fmt::format("is {}; expected {} to {}", *value, least, most));
    return *value;
  }

  /// A key that changes results unless it has one of these values.
  void require_number(std::string_view name, std::initializer_list<double> neutral) const {
    const auto value = header_.number(key(name));
    if (value && std::ranges::find(neutral, *value) == neutral.end())
      fail(key(name),
           fmt::format("is {}, which is not supported; expected {}", *value, *neutral.begin()));
  }
  void require_flag(std::string_view name, bool neutral) const {
    const auto value = header_.boolean(key(name));
    if (value && *value != neutral)
      fail(key(name), fmt::format("is {}, which is not supported", *value));
  }

 private:
  const GgufHeader& header_;
};

void check_architecture(const GgufHeader& header) {
  if (const auto type = header.text("general.type"); type && *type != "model")
    throw Error(fmt::format(
        "{} is \"{}\": the file holds {}, not a model; name the model that it is for, and this as "
        "the adapter",
        header.where("general.type"), printable(*type),
        *type == "adapter" ? "an adapter (LoRA)" : "something else"));
  const auto architecture = header.text(kArchitecture);
  if (!architecture)
    throw Error(fmt::format("{} is missing; expected \"llama\"", header.where(kArchitecture)));
  if (*architecture != "llama")
    throw Error(
        fmt::format("{} is \"{}\"; only Mixtral models are read, whose architecture is "
                    "\"llama\"",
                    header.where(kArchitecture), printable(*architecture)));
}

/// Scaling of rotary positions, which this program does not do.
void refuse_rope_scaling(const GgufHeader& header, const ConfigReader& read) {
  const std::string type = read.key("rope.scaling.type");
  if (const auto value = header.text(type); value && *value != "none") {
    const double factor = header.number(read.key("rope.scaling.factor")).value_or(1);
    if (*value != "linear" || factor != 1)
      read.fail(type, fmt::format("is \"{}\"; scaled rotary positions are not supported",
                                  printable(*value)));
  }
  read.require_number("rope.scaling.factor", {1, 0});
  read.require_number("rope.scale_linear", {1, 0});
  read.require_number("rope.scaling.attn_factor", {1});
}

void refuse_unsupported(const GgufHeader& header, const ConfigReader& read) {
  refuse_rope_scaling(header, read);
  read.require_number("attention.clamp_kqv", {0});
  read.require_number("attention.max_alibi_bias", {0});
  read.require_number("attention.scale", {0});
  read.require_number("logit_scale", {1, 0});
  read.require_number("residual_scale", {1, 0});
  read.require_number("embedding_scale", {1, 0});
  read.require_number("expert_shared_count", {0});
  read.require_number("expert_weights_scale", {1, 0});
  read.require_number("expert_gating_func", {1, 0});  // 1: softmax
  read.require_number("leading_dense_block_count", {0});
  read.require_number("interleave_moe_layer_step", {1, 0});
  read.require_flag("expert_weights_norm", true);
  read.require_flag("use_parallel_residual", false);
  read.require_flag("attention.causal", true);
}

/// The number that was meant where it went through f32: 1e-5, not 9.99999974e-06.
double as_written(double value) {
  return parse_number(fmt::format("{}", static_cast<float>(value))).value_or(value);
}

/// The ids that end a text, each once.
std::vector<int64_t> end_ids(const GgufHeader& header) {
  std::vector<int64_t> ids;
  for (const char* name : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"})
    if (const auto id = header.integer(name); id && std::ranges::find(ids, *id) == ids.end())
      ids.push_back(*id);
  return ids;
}

}  // namespace

ModelConfig gguf_config(const GgufTensors& tensors) {
  const GgufHeader& header = tensors.header();
  check_architecture(header);
  const ConfigReader read(header);
  ModelConfig config;
  config.num_experts = read.integer("expert_count", 0, 4096, 0);
  if (config.num_experts == 0)
    read.fail(read.key("expert_count"),
              "is missing or 0: the model is no mixture of experts, and only Mixtral models are "
              "read");
  config.experts_per_token = read.integer("expert_used_count", 1, config.num_experts);
  config.num_layers = read.integer("block_count", 1, 1024);
  config.hidden_size = read.integer("embedding_length", 1, int64_t{1} << 17);
  config.intermediate_size = read.integer("expert_feed_forward_length", 1, int64_t{1} << 20,
                                          read.integer("feed_forward_length", 1, int64_t{1} << 20));
  config.num_heads = read.integer("attention.head_count", 1, 4096);
  config.num_kv_heads =
      read.integer("attention.head_count_kv", 1, config.num_heads, config.num_heads);
  if (config.num_heads % config.num_kv_heads != 0)
    read.fail(read.key("attention.head_count_kv"),
              fmt::format("is {}, which does not divide the {} of head_count", config.num_kv_heads,
                          config.num_heads));
  const bool has_width = header.integer(read.key("attention.key_length")).has_value();
  if (!has_width && config.hidden_size % config.num_heads != 0)
    read.fail(read.key("attention.head_count"),
              fmt::format("is {}, which does not divide embedding_length, {}", config.num_heads,
                          config.hidden_size));
  config.head_dim = read.integer("attention.key_length", 2, 4096,
                                 std::max<int64_t>(2, config.hidden_size / config.num_heads));
  for (const char* same : {"attention.value_length", "rope.dimension_count"})
    read.integer(same, config.head_dim, config.head_dim, config.head_dim);
  config.max_positions = read.integer("context_length", 1, int64_t{1} << 26);
  config.rms_norm_eps = read.number("attention.layer_norm_rms_epsilon", 1e-30, 1);
  config.rope_theta = read.number("rope.freq_base", 1, 1e15, 1e4);
  config.sliding_window = read.integer("attention.sliding_window", 0, int64_t{1} << 31, 0);
  refuse_unsupported(header, read);

  const TensorEntry* embedding = tensors.find("token_embd.weight");
  const int64_t rows = embedding && embedding->dims.size() == 2 ? embedding->dims.front() : 0;
  config.vocab_size = read.integer("vocab_size", 1, int64_t{1} << 24, std::max<int64_t>(rows, 1));
  config.tie_embeddings = tensors.find("output.weight") == nullptr;
  config.bos_id = header.integer("tokenizer.ggml.bos_token_id").value_or(-1);
  config.pad_id = header.integer("tokenizer.ggml.padding_token_id").value_or(-1);
  config.eos_ids = end_ids(header);
  const bool coded = std::ranges::any_of(
      tensors.names(), [&](const std::string& name) { return tensors.find(name)->coded; });
  if (!coded && embedding && embedding->dtype && is_float(*embedding->dtype))
    config.dtype = *embedding->dtype;
  config.rms_norm_eps = as_written(config.rms_norm_eps);
  config.rope_theta = as_written(config.rope_theta);
  config.validate(tensors.path().string());
  return config;
}

}  // namespace mixtral
