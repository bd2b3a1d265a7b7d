#include "model/adapter_file.h"

#include <fmt/format.h>

#include "io/gguf.h"
#include "io/json.h"
#include "model/adapter_reader.h"

namespace mixtral {

namespace fs = std::filesystem;

AdapterFile AdapterFile::load(const fs::path& directory, const ModelConfig& model,
                              const fs::path& base) {
  if (fs::is_regular_file(directory) && is_gguf_file(directory))
    return load_gguf_adapter(directory, model);
  if (!fs::exists(directory / "adapter_config.json") && fs::exists(directory / "lora.safetensors"))
    return load_mistral_adapter(directory, model);
  const fs::path config_path = directory / "adapter_config.json";
  if (!fs::exists(config_path))
    throw Error(fmt::format(
        "{}: found no adapter_config.json; an adapter is a folder with that file "
        "and adapter_model.safetensors (PEFT) or adapters.safetensors (mlx-lm), one with "
        "lora.safetensors (Mistral), or a GGUF file",
        directory.string()));
  const Json config = Json::load(config_path);
  if (config.find("peft_type")) return load_peft_adapter(directory, config, model, base);
  if (config.find("lora_parameters")) return load_mlx_adapter(directory, config, model);
  throw Error(fmt::format("{}: has neither peft_type (PEFT) nor lora_parameters (mlx-lm)",
                          config_path.string()));
}

}  // namespace mixtral
