#include "model/mistral_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <span>
#include <string_view>

#include "base/error.h"

namespace mixtral {
namespace {

constexpr int64_t kPositions = 32768;  // of Mixtral 8x7B, where the file does not say

/// Keys that are read, and those that change nothing here: they size buffers of other programs.
constexpr std::array<std::string_view, 18> kKnown = {
    "dim",         "n_layers",       "head_dim",        "hidden_dim",
    "n_heads",     "n_kv_heads",     "norm_eps",        "vocab_size",
    "moe",         "rope_theta",     "sliding_window",  "max_seq_len",
    "model_type",  "max_batch_size", "tied_embeddings", "max_position_embeddings",
    "torch_dtype", "dtype"};

const Json& need(const Json& json, const char* key) {
  const Json* value = json.find(key);
  if (!value || value->is_null())
    throw Error(fmt::format("{}: the key \"{}\" is missing", json.where(), key));
  return *value;
}

const Json* given(const Json& json, const char* key) {
  const Json* value = json.find(key);
  return value && !value->is_null() ? value : nullptr;
}

/// Whether a value that this program does not know can be meant to change nothing.
bool is_off(const Json& value) {
  if (value.is_null() || value.is_string()) return true;
  if (value.is_bool()) return !value.as_bool();
  return value.is_number() && value.as_double() == 0;
}

void refuse_unknown(const Json& json, std::span<const std::string_view> known) {
  for (const auto& [key, value] : json.members())
    if (std::ranges::find(known, key) == known.end() && !is_off(value))
      throw Error(fmt::format("{}: this key is not known, and the model may need what it asks for",
                              value.where()));
}

}  // namespace

ModelConfig mistral_config(const Json& params) {
  ModelConfig config;
  const Json* moe = given(params, "moe");
  if (!moe)
    throw Error(
        fmt::format("{}: the key \"moe\" is missing: the model has no experts, and only "
                    "Mixtral models are read",
                    params.where()));
  refuse_unknown(params, kKnown);
  constexpr std::array<std::string_view, 2> kMoe = {"num_experts", "num_experts_per_tok"};
  refuse_unknown(*moe, kMoe);
  config.num_experts = need(*moe, "num_experts").as_int();
  config.experts_per_token = need(*moe, "num_experts_per_tok").as_int();
  config.hidden_size = need(params, "dim").as_int();
  config.num_layers = need(params, "n_layers").as_int();
  config.intermediate_size = need(params, "hidden_dim").as_int();
  config.num_heads = need(params, "n_heads").as_int();
  config.num_kv_heads = need(params, "n_kv_heads").as_int();
  config.rms_norm_eps = need(params, "norm_eps").as_double();
  config.vocab_size = need(params, "vocab_size").as_int();
  if (const Json* width = given(params, "head_dim"))
    config.head_dim = width->as_int();
  else if (config.num_heads > 0)
    config.head_dim = config.hidden_size / config.num_heads;
  config.rope_theta = 1e6;
  if (const Json* theta = given(params, "rope_theta")) config.rope_theta = theta->as_double();
  config.max_positions = kPositions;
  for (const char* key : {"max_position_embeddings", "max_seq_len"})
    if (const Json* positions = given(params, key)) config.max_positions = positions->as_int();
  if (const Json* window = given(params, "sliding_window")) {
    if (window->is_array())
      throw Error(
          fmt::format("{}: windows that differ by layer are not supported", window->where()));
    config.sliding_window = window->as_int();
  }
  if (const Json* tied = given(params, "tied_embeddings")) config.tie_embeddings = tied->as_bool();
  config.dtype_is_open = true;  // the file does not say
  config.validate(params.where());
  return config;
}

}  // namespace mixtral
