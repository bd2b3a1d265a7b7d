#include "model/config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "base/file.h"
#include "base/nearest.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMostParameters = int64_t{1} << 50;
constexpr int64_t kMostExperts = int64_t{1} << 17;  // of all layers

// config.json's names for floating-point types.
constexpr std::pair<std::string_view, Dtype> kDtypes[] = {{"float32", Dtype::f32},
                                                          {"bfloat16", Dtype::bf16},
                                                          {"float16", Dtype::f16},
                                                          {"float64", Dtype::f64}};

// A key that is there and not null.
const Json* given(const Json& json, std::string_view key) {
  const Json* value = json.find(key);
  return value && !value->is_null() ? value : nullptr;
}

void read(const Json& json, std::string_view key, int64_t& field) {
  if (const Json* value = given(json, key)) field = value->as_int();
}
void read(const Json& json, std::string_view key, double& field) {
  if (const Json* value = given(json, key)) field = value->as_double();
}
void read(const Json& json, std::string_view key, bool& field) {
  if (const Json* value = given(json, key)) field = value->as_bool();
}

void require_text(const Json& json, std::string_view key, std::string_view expected) {
  const Json* value = given(json, key);
  if (value && value->as_string() != expected)
    throw Error(fmt::format("{}: expected \"{}\", found \"{}\", which is not supported",
                            value->where(), expected, printable(value->as_string())));
}

void require_number(const Json& json, std::string_view key, double expected) {
  const Json* value = given(json, key);
  if (value && value->as_double() != expected)
    throw Error(fmt::format("{}: expected {}, found {}, which is not supported", value->where(),
                            expected, value->as_double()));
}

void check_architecture(const Json& json) {
  const Json* type = given(json, "model_type");
  const Json* names = given(json, "architectures");
  if (!type && !names)
    throw Error(
        fmt::format("{}: model_type and architectures are both missing; expected "
                    "\"mixtral\" and [\"MixtralForCausalLM\"]",
                    json.where()));
  if (type && type->as_string() != "mixtral")
    throw Error(
        fmt::format("{}: expected \"mixtral\", found \"{}\"; only Mixtral models are "
                    "supported",
                    type->where(), printable(type->as_string())));
  if (names && std::ranges::none_of(names->items(), [](const Json& name) {
        return name.as_string() == "MixtralForCausalLM";
      }))
    throw Error(
        fmt::format("{}: expected [\"MixtralForCausalLM\"]; only Mixtral language models "
                    "are supported",
                    names->where()));
}

// Things a config.json may ask for that change results and that this program does not do.
void refuse_unsupported(const Json& json) {
  if (const Json* act = given(json, "hidden_act"); !act || act->as_string() != "swish")
    require_text(json, "hidden_act", "silu");  // transformers has both names for it
  // MLX's (which name no method), AWQ's and GPTQ's weights are read (model/open_tensors.h).
  const Json* quantized = given(json, "quantization_config");
  const Json* method =
      quantized && quantized->is_object() ? given(*quantized, "quant_method") : nullptr;
  if (quantized && !(method ? method->as_string() == "awq" || method->as_string() == "gptq"
                            : quantized->is_object() && given(*quantized, "group_size")))
    throw Error(
        fmt::format("{}: weights quantized in this way are not supported; expected those of MLX, "
                    "AWQ or GPTQ, or the model's plain weights",
                    quantized->where()));
}

// transformers 4: rope_theta, and rope_scaling that is null or {type or rope_type, ...};
// transformers 5: rope_parameters {rope_theta, rope_type, ...}.
void read_rope(const Json& json, ModelConfig& config) {
  read(json, "rope_theta", config.rope_theta);
  for (const std::string_view key : {"rope_scaling", "rope_parameters"}) {
    const Json* rope = given(json, key);
    if (!rope) continue;
    require_text(*rope, "type", "default");
    require_text(*rope, "rope_type", "default");
    require_number(*rope, "partial_rotary_factor", 1);
    read(*rope, "rope_theta", config.rope_theta);
  }
}

void read_token_ids(const Json& json, ModelConfig& config) {
  // Where the key is null there is no such token.
  const auto read_id = [&](std::string_view key, int64_t& id) {
    if (const Json* value = json.find(key)) id = value->is_null() ? -1 : value->as_int();
  };
  read_id("bos_token_id", config.bos_id);
  read_id("pad_token_id", config.pad_id);
  const Json* eos = json.find("eos_token_id");
  if (!eos) return;
  config.eos_ids.clear();
  if (eos->is_array())
    for (const Json& id : eos->items()) config.eos_ids.push_back(id.as_int());
  else if (!eos->is_null())
    config.eos_ids.push_back(eos->as_int());
}

void read_dtype(const Json& json, ModelConfig& config) {
  config.dtype_is_open = true;
  for (const std::string_view key : {"torch_dtype", "dtype"}) {
    const Json* value = given(json, key);
    if (!value || value->as_string() == "auto") continue;
    const auto* named =
        std::ranges::find(kDtypes, value->as_string(), &std::pair<std::string_view, Dtype>::first);
    if (named == std::end(kDtypes))
      throw Error(fmt::format("{}: expected float32, bfloat16, float16 or float64, found \"{}\"",
                              value->where(), printable(value->as_string())));
    config.dtype = named->second;
    config.dtype_is_open = false;
  }
}

nlohmann::ordered_json id_or_null(int64_t id) {
  return id < 0 ? nlohmann::ordered_json() : nlohmann::ordered_json(id);
}

nlohmann::ordered_json eos_value(const std::vector<int64_t>& ids) {
  if (ids.size() == 1) return ids.front();
  return ids.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(ids);
}

}  // namespace

ModelConfig ModelConfig::parse(const Json& json) {
  ModelConfig config;
  check_architecture(json);
  refuse_unsupported(json);
  read(json, "vocab_size", config.vocab_size);
  read(json, "hidden_size", config.hidden_size);
  read(json, "intermediate_size", config.intermediate_size);
  read(json, "num_hidden_layers", config.num_layers);
  read(json, "num_attention_heads", config.num_heads);
  // As in transformers: absent means 8, null means as many as query heads.
  if (const Json* kv = json.find("num_key_value_heads"))
    config.num_kv_heads = kv->is_null() ? config.num_heads : kv->as_int();
  read(json, "num_experts", config.num_experts);  // a second name of the next
  read(json, "num_local_experts", config.num_experts);
  read(json, "num_experts_per_tok", config.experts_per_token);
  read(json, "max_position_embeddings", config.max_positions);
  read(json, "rms_norm_eps", config.rms_norm_eps);
  read(json, "initializer_range", config.initializer_range);
  read(json, "router_aux_loss_coef", config.router_aux_loss_coef);
  read(json, "tie_word_embeddings", config.tie_embeddings);
  read(json, "attention_dropout", config.attention_dropout);
  read(json, "router_jitter_noise", config.router_jitter_noise);
  read_rope(json, config);
  read_token_ids(json, config);
  read_dtype(json, config);
  if (const Json* window = given(json, "sliding_window")) {
    config.sliding_window = window->as_int();
    if (config.sliding_window == 0)
      throw Error(fmt::format("{}: expected null or at least 1, found 0", window->where()));
  }
  const std::string source = json.where();
  if (const Json* head_dim = given(json, "head_dim")) {
    config.head_dim = head_dim->as_int();
  } else {
    if (config.num_heads < 1 || config.hidden_size % config.num_heads != 0)
      throw Error(
          fmt::format("{}: hidden_size {} is not a multiple of num_attention_heads {}, and "
                      "there is no head_dim",
                      source, config.hidden_size, config.num_heads));
    config.head_dim = config.hidden_size / config.num_heads;
  }
  config.validate(source);
  return config;
}

void ModelConfig::validate(std::string_view source) const {
  const auto in_range = [&](std::string_view key, int64_t value, int64_t least, int64_t most) {
    if (value < least || value > most)
      throw Error(
          fmt::format("{}: {}: expected {} to {}, found {}", source, key, least, most, value));
  };
  const auto real_in_range = [&](std::string_view key, double value, double least, double most) {
    if (!(value >= least && value <= most))
      throw Error(
          fmt::format("{}: {}: expected {} to {}, found {}", source, key, least, most, value));
  };
  in_range("vocab_size", vocab_size, 1, int64_t{1} << 24);
  in_range("hidden_size", hidden_size, 1, int64_t{1} << 17);
  in_range("intermediate_size", intermediate_size, 1, int64_t{1} << 20);
  in_range("num_hidden_layers", num_layers, 1, 1024);
  in_range("num_attention_heads", num_heads, 1, 4096);
  in_range("num_key_value_heads", num_kv_heads, 1, num_heads);
  in_range("head_dim", head_dim, 2, 4096);
  in_range("num_local_experts", num_experts, 1, 4096);
  // Each is a few tensors, and their names alone take memory.
  in_range("num_hidden_layers x num_local_experts", num_layers * num_experts, 1, kMostExperts);
  in_range("num_experts_per_tok", experts_per_token, 1, num_experts);
  in_range("max_position_embeddings", max_positions, 1, int64_t{1} << 26);
  in_range("sliding_window", sliding_window, 0, int64_t{1} << 31);
  real_in_range("rms_norm_eps", rms_norm_eps, 1e-30, 1);
  real_in_range("rope_theta", rope_theta, 1, 1e15);
  real_in_range("initializer_range", initializer_range, 0, 100);
  real_in_range("router_aux_loss_coef", router_aux_loss_coef, 0, 1000);
  real_in_range("attention_dropout", attention_dropout, 0, 1);
  real_in_range("router_jitter_noise", router_jitter_noise, 0, 1);
  in_range("bos_token_id", bos_id, -1, vocab_size - 1);
  in_range("pad_token_id", pad_id, -1, vocab_size - 1);
  if (eos_ids.size() > 64)
    throw Error(
        fmt::format("{}: eos_token_id: {} ids; at most 64 are accepted", source, eos_ids.size()));
  for (const int64_t id : eos_ids) in_range("eos_token_id", id, 0, vocab_size - 1);
  if (num_heads % num_kv_heads != 0)
    throw Error(
        fmt::format("{}: num_attention_heads {} is not a multiple of num_key_value_heads "
                    "{}",
                    source, num_heads, num_kv_heads));
  if (head_dim % 2 != 0)
    throw Error(fmt::format("{}: the head width {} is odd, but rotary positions need pairs", source,
                            head_dim));
  // The ranges above keep the count itself from overflowing.
  const int64_t total = count_parameters(*this).total;
  if (total > kMostParameters)
    throw Error(fmt::format("{}: the model would have {} parameters; at most {} are accepted",
                            source, total, kMostParameters));
}

ModelConfig ModelConfig::parse(const Json& json, const Json* generation) {
  ModelConfig config = parse(json);
  if (generation) {
    read_token_ids(*generation, config);
    config.validate(generation->where());
  }
  return config;
}

ModelConfig ModelConfig::load(const fs::path& directory) {
  const Json json = Json::load(directory / "config.json", kConfigLimits);
  const fs::path generation = directory / "generation_config.json";
  if (!fs::exists(generation)) return parse(json);
  const Json more = Json::load(generation, kConfigLimits);
  return parse(json, &more);
}

void refuse_training_noise(const ModelConfig& config, std::string_view source) {
  for (const auto& [key, value] : {std::pair("attention_dropout", config.attention_dropout),
                                   std::pair("router_jitter_noise", config.router_jitter_noise)})
    if (value != 0)
      throw Error(
          fmt::format("{}: config.json sets {} to {}, noise that training here does not make; set "
                      "it to 0 there to train without it",
                      source, key, value));
}

std::string ModelConfig::to_json() const {
  const auto* type = std::ranges::find(kDtypes, dtype, &std::pair<std::string_view, Dtype>::second);
  CHECK(type != std::end(kDtypes));
  const nlohmann::ordered_json json = {
      {"architectures", nlohmann::ordered_json::array({"MixtralForCausalLM"})},
      {"attention_dropout", attention_dropout},
      {"bos_token_id", id_or_null(bos_id)},
      {"eos_token_id", eos_value(eos_ids)},
      {"head_dim", head_dim},
      {"hidden_act", "silu"},
      {"hidden_size", hidden_size},
      {"initializer_range", initializer_range},
      {"intermediate_size", intermediate_size},
      {"max_position_embeddings", max_positions},
      {"model_type", "mixtral"},
      {"num_attention_heads", num_heads},
      {"num_experts_per_tok", experts_per_token},
      {"num_hidden_layers", num_layers},
      {"num_key_value_heads", num_kv_heads},
      {"num_local_experts", num_experts},
      {"output_router_logits", false},
      {"pad_token_id", id_or_null(pad_id)},
      {"rms_norm_eps", rms_norm_eps},
      {"rope_theta", rope_theta},
      {"router_aux_loss_coef", router_aux_loss_coef},
      {"router_jitter_noise", router_jitter_noise},
      {"sliding_window",
       sliding_window > 0 ? nlohmann::ordered_json(sliding_window) : nlohmann::ordered_json()},
      {"tie_word_embeddings", tie_embeddings},
      {"torch_dtype", std::string(type->first)},
      {"use_cache", true},
      {"vocab_size", vocab_size}};
  return json.dump(2) + "\n";
}

void ModelConfig::save(const fs::path& directory) const {
  const nlohmann::ordered_json generation = {{"_from_model_config", true},
                                             {"bos_token_id", id_or_null(bos_id)},
                                             {"eos_token_id", eos_value(eos_ids)},
                                             {"pad_token_id", id_or_null(pad_id)}};
  write_file(directory / "config.json", to_json());
  write_file(directory / "generation_config.json", generation.dump(2) + "\n");
}

ParameterCount count_parameters(const ModelConfig& c) {
  const int64_t expert = 3 * c.hidden_size * c.intermediate_size;
  ParameterCount count;
  count.embedding = c.vocab_size * c.hidden_size;
  count.attention = c.num_layers * 2 * c.hidden_size * c.head_dim * (c.num_heads + c.num_kv_heads);
  count.router = c.num_layers * c.num_experts * c.hidden_size;
  count.experts = c.num_layers * c.num_experts * expert;
  count.norms = (2 * c.num_layers + 1) * c.hidden_size;
  count.head = c.tie_embeddings ? 0 : c.vocab_size * c.hidden_size;
  count.total =
      count.embedding + count.attention + count.router + count.experts + count.norms + count.head;
  count.active = count.attention + count.router + c.num_layers * c.experts_per_token * expert +
                 c.vocab_size * c.hidden_size;
  return count;
}

double training_flops_per_token(const ModelConfig& c, int64_t context) {
  return 6.0 * static_cast<double>(count_parameters(c).active) +
         6.0 * static_cast<double>(c.num_layers * c.num_heads * c.head_dim) *
             static_cast<double>(context);
}

namespace {

// For tests and small experiments: minutes on a laptop. The wider initialisation is what small
// widths learn best from.
ModelConfig tiny_config() {
  return {.vocab_size = 256,
          .hidden_size = 128,
          .intermediate_size = 160,
          .num_layers = 4,
          .num_heads = 4,
          .num_kv_heads = 2,
          .head_dim = 32,
          .max_positions = 1024,
          .rope_theta = 1e4,
          .initializer_range = 0.05,
          .router_aux_loss_coef = 0.02};
}

// Simple stories with a vocabulary of 4,096 pieces: half an hour on a two-core laptop.
ModelConfig small_config() {
  return {.vocab_size = 4096,
          .hidden_size = 256,
          .intermediate_size = 384,
          .num_layers = 6,
          .num_heads = 8,
          .num_kv_heads = 4,
          .head_dim = 32,
          .max_positions = 1024,
          .rope_theta = 1e4,
          .initializer_range = 0.05,
          .router_aux_loss_coef = 0.02};
}

ModelConfig seed_config() {
  return {.vocab_size = 32000,
          .hidden_size = 1024,
          .intermediate_size = 4096,
          .num_layers = 12,
          .num_heads = 16,
          .num_kv_heads = 8,
          .head_dim = 64,
          .max_positions = 2048,
          .rms_norm_eps = 1e-6,
          .router_aux_loss_coef = 0.02};
}

// Mixtral 8x7B as released.
ModelConfig released_config() {
  return {.max_positions = 32768, .router_aux_loss_coef = 0.02, .dtype = Dtype::bf16};
}

}  // namespace

const std::vector<std::string>& builtin_config_names() {
  static const std::vector<std::string> names = {"tiny", "small", "seed", "8x7b"};
  return names;
}

bool is_builtin_config(std::string_view name) {
  return std::ranges::find(builtin_config_names(), name) != builtin_config_names().end();
}

ModelConfig builtin_config(std::string_view name) {
  if (name == "tiny") return tiny_config();
  if (name == "small") return small_config();
  if (name == "seed") return seed_config();
  if (name == "8x7b") return released_config();
  const std::string close = nearest(name, builtin_config_names());
  throw UsageError(fmt::format("there is no built-in configuration \"{}\"; expected one of {}{}",
                               printable(name), fmt::join(builtin_config_names(), ", "),
                               close.empty() ? "" : fmt::format(" (did you mean {}?)", close)));
}

}  // namespace mixtral
