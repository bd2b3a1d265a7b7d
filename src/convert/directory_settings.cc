#include "convert/directory_settings.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "open/companions.h"
#include "text/tokenizer.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

/// Whether two configurations describe the same computation. GGUF has its real numbers in f32.
bool same_model(const ModelConfig& a, const ModelConfig& b) {
  const auto close = [](double x, double y) {
    return static_cast<float>(x) == static_cast<float>(y);
  };
  return a.vocab_size == b.vocab_size && a.hidden_size == b.hidden_size &&
         a.intermediate_size == b.intermediate_size && a.num_layers == b.num_layers &&
         a.num_heads == b.num_heads && a.num_kv_heads == b.num_kv_heads &&
         a.head_dim == b.head_dim && a.num_experts == b.num_experts &&
         a.experts_per_token == b.experts_per_token && close(a.rms_norm_eps, b.rms_norm_eps) &&
         close(a.rope_theta, b.rope_theta) && a.sliding_window == b.sliding_window &&
         a.tie_embeddings == b.tie_embeddings;
}

/// The config.json that the model had, with the target's type; else one that says the same.
ordered_json hugging_face_config(const Conversion& conversion) {
  ModelConfig config = conversion.config();
  config.dtype = conversion.dtype();
  ordered_json json = ordered_json::parse(config.to_json());
  const auto kept = conversion.kept().find("config.json");
  if (kept == conversion.kept().end()) return json;
  const std::string dtype = json.at("torch_dtype");
  ordered_json own = ordered_json::parse(kept->second);
  own.erase("quantization");
  own.erase("quantization_config");
  const std::string text = own.dump();
  const ModelConfig was = ModelConfig::parse(Json::parse(text, "config.json", kConfigLimits));
  if (!same_model(was, config)) return json;
  const bool newer = own.contains("dtype") && !own.contains("torch_dtype");
  own[newer ? "dtype" : "torch_dtype"] = dtype;
  if (!newer && own.contains("dtype")) own["dtype"] = dtype;
  return own;
}

/// The text of a file as it was, where nothing in it changed.
std::string config_text(const Conversion& conversion, const ordered_json& json) {
  const auto kept = conversion.kept().find("config.json");
  if (kept != conversion.kept().end() && ordered_json::parse(kept->second) == json)
    return kept->second;
  return json.dump(2) + "\n";
}

/// MLX's groups: of most modules, and by path of those that have others.
void add_quantization(const Conversion& conversion, ordered_json& config) {
  const auto how = [](const StoredType& type) {
    return ordered_json{{"group_size", type.group}, {"bits", type.bits}};
  };
  std::map<std::string, std::pair<int, ordered_json>> kinds;
  for (const OutputTensor& output : conversion.outputs()) {
    if (!output.type.grouped()) continue;
    auto& [count, kind] = kinds[output.type.name()];
    ++count;
    kind = how(output.type);
  }
  if (kinds.empty()) return;
  const auto most =
      std::ranges::max_element(kinds, {}, [](const auto& k) { return k.second.first; });
  ordered_json all = most->second.second;
  for (const OutputTensor& output : conversion.outputs())
    if (output.type.grouped() && output.type.name() != most->first)
      all[output.name.substr(0, output.name.rfind('.'))] = how(output.type);
  config["quantization"] = all;
  config["quantization_config"] = all;
}

std::string mistral_params(const ModelConfig& c) {
  ordered_json params = {
      {"dim", c.hidden_size},
      {"n_layers", c.num_layers},
      {"head_dim", c.head_dim},
      {"hidden_dim", c.intermediate_size},
      {"n_heads", c.num_heads},
      {"n_kv_heads", c.num_kv_heads},
      {"rope_theta", c.rope_theta},
      {"norm_eps", c.rms_norm_eps},
      {"vocab_size", c.vocab_size},
      {"max_seq_len", c.max_positions},
      {"moe", {{"num_experts_per_tok", c.experts_per_token}, {"num_experts", c.num_experts}}}};
  if (c.sliding_window > 0) params["sliding_window"] = c.sliding_window;
  return params.dump(4) + "\n";
}

/// Of a GGUF file of another program: the tokenizer's files anew, and the chat template.
void write_tokenizer(const Conversion& conversion, const fs::path& directory) {
  const auto tokenizer = conversion.source().tokenizer();
  if (!tokenizer) return;
  tokenizer->save(directory);
  const auto chat = conversion.gguf()->header().text("tokenizer.chat_template");
  if (chat) write_file(directory / "chat_template.jinja", *chat);
}

bool has_tokenizer(const std::map<std::string, std::string>& files) {
  return std::ranges::any_of(files, [](const auto& file) { return is_tokenizer_file(file.first); });
}

}  // namespace

std::vector<std::string> write_settings(const Conversion& conversion, const fs::path& directory) {
  const bool to_mistral = conversion.options().to == ModelFormat::mistral;
  if (conversion.gguf()) {
    for (const auto& [name, contents] : conversion.kept())
      if (name != "config.json") write_file(directory / name, contents);
    if (!has_tokenizer(conversion.kept())) write_tokenizer(conversion, directory);
  } else {
    copy_companions(conversion.source().directory(), directory);
  }
  std::error_code error;
  if (!fs::exists(directory / "generation_config.json", error) && !to_mistral) {
    conversion.config().save(directory);  // config.json is written again below
  }
  ordered_json config = hugging_face_config(conversion);
  if (conversion.options().to == ModelFormat::mlx) add_quantization(conversion, config);
  if (to_mistral) {
    write_file(directory / "params.json", mistral_params(conversion.config()));
    write_file(directory / kKeptConfig, config_text(conversion, config));
  } else {
    write_file(directory / "config.json", config_text(conversion, config));
  }
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory)) {
    const std::string name = entry.path().filename().string();
    if (entry.is_regular_file() && !name.ends_with(".safetensors") &&
        !name.ends_with(".safetensors.index.json"))
      names.push_back(name);
  }
  std::ranges::sort(names);
  return names;
}

}  // namespace mixtral
