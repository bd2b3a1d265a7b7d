#include "model/dense_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "model/tensor_names.h"

namespace mixtral {
namespace {

using nlohmann::ordered_json;

bool is_mistral(const Json& json) { return json.at("model_type").as_string() == "mistral"; }

/// What transformers takes for keys that are absent (configuration_mistral.py,
/// configuration_llama.py).
ordered_json defaults(bool mistral) {
  ordered_json json = {{"vocab_size", 32000},         {"hidden_size", 4096},
                       {"num_hidden_layers", 32},     {"num_attention_heads", 32},
                       {"rms_norm_eps", 1e-6},        {"rope_theta", 1e4},
                       {"tie_word_embeddings", false}};
  json["intermediate_size"] = mistral ? 14336 : 11008;
  json["max_position_embeddings"] = mistral ? 131072 : 2048;
  // null: as many as query heads.
  json["num_key_value_heads"] = mistral ? ordered_json(8) : ordered_json();
  json["sliding_window"] = mistral ? ordered_json(4096) : ordered_json();
  return json;
}

void refuse_biases(const Json& json) {
  for (const std::string_view key : {"attention_bias", "mlp_bias"}) {
    const Json* value = json.find(key);
    if (value && !value->is_null() && value->as_bool())
      throw Error(fmt::format("{}: the model has biases, for which a Mixtral has no place",
                              value->where()));
  }
}

}  // namespace

bool is_dense_config(const Json& json) {
  const Json* type = json.find("model_type");
  return type && type->is_string() &&
         (type->as_string() == "mistral" || type->as_string() == "llama");
}

ModelConfig dense_config(std::string_view text, std::string_view source, const Json* generation) {
  const Json dense = Json::parse(text, source, kConfigLimits);
  refuse_biases(dense);
  ordered_json config = ordered_json::parse(text);
  const bool mistral = is_mistral(dense);
  if (!mistral) config.erase("sliding_window");  // transformers' Llama does not read it
  const ordered_json absent = defaults(mistral);
  for (const auto& [key, value] : absent.items())
    if (!config.contains(key)) config[key] = value;
  config["model_type"] = "mixtral";
  config["architectures"] = {"MixtralForCausalLM"};
  config.erase("num_experts");
  config["num_local_experts"] = 1;
  config["num_experts_per_tok"] = 1;
  // The balancing loss of further training is as in Mixtral 8x7B's configuration.
  config["router_aux_loss_coef"] = 0.02;
  return ModelConfig::parse(Json::parse(config.dump(), source, kConfigLimits), generation);
}

DenseTensors::DenseTensors(std::shared_ptr<const TensorSource> dense, const ModelConfig& config)
    : dense_(std::move(dense)), names_(dense_->names()) {
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const TensorId id{.kind = TensorKind::router, .layer = layer};
    if (find_place(*dense_, config, id)) continue;
    routers_.push_back({.name = tensor_name(id),
                        .type = "F32",
                        .dtype = Dtype::f32,
                        .format = {},
                        .dims = {1, config.hidden_size}});
    names_.push_back(routers_.back().name);
  }
}

const TensorEntry* DenseTensors::find_router(std::string_view name) const {
  const auto found = std::ranges::find(routers_, name, &TensorEntry::name);
  return found == routers_.end() ? nullptr : &*found;
}

const TensorEntry* DenseTensors::find(std::string_view name) const {
  const TensorEntry* entry = dense_->find(name);
  return entry ? entry : find_router(name);
}

const std::filesystem::path& DenseTensors::file_of(std::string_view name) const {
  return find_router(name) ? dense_->path() : dense_->file_of(name);
}

std::span<const std::byte> DenseTensors::raw(std::string_view name) const {
  return find_router(name) ? std::span<const std::byte>() : dense_->raw(name);
}

void DenseTensors::read(std::string_view name, int64_t first, const Tensor& to) const {
  // Zero is zero bytes in every floating-point type.
  if (find_router(name))
    std::memset(to.data(), 0, static_cast<size_t>(to.bytes()));
  else
    dense_->read(name, first, to);
}

void DenseTensors::read_codes(std::string_view name, int64_t first_row,
                              std::span<const Tensor> pieces) const {
  dense_->read_codes(name, first_row, pieces);
}

}  // namespace mixtral
