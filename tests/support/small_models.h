#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/random.h"
#include "io/safetensors_writer.h"
#include "model/tensor_names.h"

namespace mixtral::testing {

/// A configuration that `ref` computes in milliseconds: layers of four experts, two of them a
/// token.
inline ModelConfig small_config(int64_t vocabulary, int64_t window = 0, int64_t layers = 2) {
  ModelConfig config;
  config.vocab_size = vocabulary;
  config.hidden_size = config.intermediate_size = 32;
  config.num_layers = layers;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 8;
  config.num_experts = 4;
  config.experts_per_token = 2;
  config.max_positions = 160;
  config.rope_theta = 1e4;
  config.sliding_window = window;
  return config;
}

/// A model's numbers by Hugging Face's names, row-major.
using Weights = std::map<std::string, std::vector<float>>;

inline std::vector<float> draw(int64_t count, uint64_t seed, uint64_t stream, double deviation,
                               double mean = 0) {
  RandomStream random(seed, stream);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(mean + deviation * random.normal());
  return values;
}

/// Random weights, large enough that every expert and attention matter.
inline Weights draw_model(const ModelConfig& config, uint64_t seed) {
  Weights weights;
  for_each_tensor(config, [&](const TensorId& id) {
    const Shape shape = tensor_shape(config, id.kind);
    const bool norm = shape.rank() == 1;
    weights[tensor_name(id)] =
        draw(shape.numel(), seed, weights.size(), norm ? 0.1 : 0.4, norm ? 1 : 0);
  });
  return weights;
}

inline void write_tensors(const std::filesystem::path& directory, const ModelConfig& config,
                          Weights& weights,
                          const std::map<std::string, std::string>& other_names = {}) {
  std::map<std::string, Tensor> tensors;
  for_each_tensor(config, [&](const TensorId& id) {
    const std::string name = tensor_name(id);
    if (!weights.contains(name)) return;
    const auto other = other_names.find(name);
    tensors[other == other_names.end() ? name : other->second] =
        Tensor(weights.at(name).data(), tensor_shape(config, id.kind), Dtype::f32);
  });
  write_safetensors(directory / "model.safetensors", tensors);
}

inline void write_mixtral(const std::filesystem::path& directory, const ModelConfig& config,
                          Weights weights) {
  std::filesystem::create_directories(directory);
  config.save(directory);
  write_tensors(directory, config, weights);
}

/// The same numbers as a dense model: those of a Mixtral with one expert, without its router.
/// `more` are further lines of its config.json.
inline void write_dense(const std::filesystem::path& directory, const ModelConfig& c,
                        Weights weights, const std::string& type = "llama",
                        const std::string& more = "") {
  std::filesystem::create_directories(directory);
  std::map<std::string, std::string> names;
  for (int64_t layer = 0; layer < c.num_layers; ++layer) {
    const auto name = [&](TensorKind kind) {
      return tensor_name({.kind = kind, .layer = layer, .expert = 0});
    };
    const std::string mlp = "model.layers." + std::to_string(layer) + ".mlp.";
    names[name(TensorKind::w1)] = mlp + "gate_proj.weight";
    names[name(TensorKind::w2)] = mlp + "down_proj.weight";
    names[name(TensorKind::w3)] = mlp + "up_proj.weight";
    weights.erase(name(TensorKind::router));
  }
  write_tensors(directory, c, weights, names);
  const auto number = [](const char* key, auto value) {
    return "\"" + std::string(key) + "\": " + std::to_string(value) + ",\n";
  };
  write_file(
      directory / "config.json",
      "{\n" + more + number("vocab_size", c.vocab_size) + number("hidden_size", c.hidden_size) +
          number("intermediate_size", c.intermediate_size) +
          number("num_hidden_layers", c.num_layers) + number("num_attention_heads", c.num_heads) +
          number("num_key_value_heads", c.num_kv_heads) + number("head_dim", c.head_dim) +
          number("max_position_embeddings", c.max_positions) +
          number("rms_norm_eps", c.rms_norm_eps) + number("rope_theta", c.rope_theta) +
          "\"hidden_act\": \"silu\",\n\"sliding_window\": null,\n\"tie_word_embeddings\": " +
          (c.tie_embeddings ? "true" : "false") +
          ",\n\"torch_dtype\": \"float32\",\n\"model_type\": \"" + type + "\"\n}\n");
}

}  // namespace mixtral::testing
