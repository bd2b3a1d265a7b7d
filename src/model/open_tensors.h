#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "io/tensor_source.h"
#include "model/config.h"

namespace mixtral {

/// In which form a model's files are.
enum class ModelForm {
  hugging_face,  // config.json and model.safetensors; MLX's, AWQ's and GPTQ's are among them
  mistral,       // params.json and consolidated.safetensors
  gguf,          // a file *.gguf
};
std::string_view to_string(ModelForm form);

/// A model's files: a directory, or a GGUF file (of one that was split, the first).
struct ModelFiles {
  std::filesystem::path path;
  ModelForm form = ModelForm::hugging_face;
  bool others = false;  // the directory has Mistral's files, too, which are not read
};

/// What a path stands for: a .gguf file, a directory with config.json or params.json, or one whose
/// only model is one GGUF file. Nothing where it is none of these. Throws Error where a directory
/// has several GGUF files and nothing says which of them is meant.
std::optional<ModelFiles> find_model_files(const std::filesystem::path& path);

/// The configuration that the files say. `note` is told what the user may not expect. Throws Error
/// where they are malformed, or ask for what this program does not do.
ModelConfig read_model_config(const ModelFiles& files, const TensorSource& tensors,
                              const std::function<void(const std::string&)>& note = {});

/// Opens the weights, which are memory-mapped. Throws Error where files are missing or damaged.
std::unique_ptr<TensorSource> open_tensors(const ModelFiles& files);

}  // namespace mixtral
