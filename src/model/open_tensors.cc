#include "model/open_tensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <vector>

#include "base/error.h"
#include "io/gguf.h"
#include "io/model_tensors.h"
#include "model/checkpoint.h"
#include "model/gguf_tensors.h"
#include "model/mistral_config.h"
#include "model/mlx_tensors.h"
#include "model/packed_tensors.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kConfig = "config.json", kParams = "params.json";
constexpr std::string_view kConsolidated = "consolidated.safetensors";
constexpr std::string_view kConsolidatedIndex = "consolidated.safetensors.index.json";

bool has(const fs::path& directory, std::string_view name) {
  std::error_code error;
  return fs::exists(directory / name, error);
}

bool is_gguf_name(const fs::path& path) {
  std::string ending = path.extension().string();
  std::ranges::transform(ending, ending.begin(),
                         [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return ending == ".gguf";
}

/// Whether a GGUF file's name says that it is a later part of a model.
bool is_later_part(const fs::path& path) {
  const std::string name = path.stem().string();
  const size_t of = name.rfind("-of-");
  return of != std::string::npos && of >= 6 && name.substr(of - 6, 6) != "-00001" &&
         name[of - 6] == '-';
}

std::vector<fs::path> gguf_files(const fs::path& directory) {
  std::vector<fs::path> files;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory, error))
    if (is_gguf_name(entry.path()) && entry.is_regular_file(error) && !is_later_part(entry.path()))
      files.push_back(entry.path());
  std::ranges::sort(files);
  return files;
}

/// What Mistral's files are where there is params.json but no safetensors file.
[[noreturn]] void no_consolidated(const fs::path& directory) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory, error))
    if (entry.path().extension() == ".pth")
      throw Error(fmt::format(
          "{} has its weights in {}, a .pth file, which is not read here; download the model's {} "
          "or its Hugging Face files",
          directory.string(), printable(entry.path().filename().string()), kConsolidated));
  throw Error(fmt::format("{} has {}, but neither {} nor {}; the download may not be complete",
                          directory.string(), kParams, kConsolidated, kConsolidatedIndex));
}

std::unique_ptr<TensorSource> open_mistral(const fs::path& directory) {
  for (const std::string_view name : {kConsolidated, kConsolidatedIndex})
    if (has(directory, name)) return std::make_unique<ModelTensors>(directory / name);
  no_consolidated(directory);
}

std::unique_ptr<TensorSource> open_hugging_face(const fs::path& directory) {
  const Json config = Json::load(directory / kConfig, kConfigLimits);
  if (auto settings = MlxQuantizations::read(config))
    return std::make_unique<MlxTensors>(directory, std::move(*settings));
  if (auto settings = PackedQuantization::read(config))
    return std::make_unique<PackedTensors>(directory, *settings);
  return std::make_unique<ModelTensors>(directory);
}

}  // namespace

std::string_view to_string(ModelForm form) {
  switch (form) {
    case ModelForm::hugging_face:
      return "Hugging Face";
    case ModelForm::mistral:
      return "Mistral";
    case ModelForm::gguf:
      return "GGUF";
  }
  return "";
}

std::optional<ModelFiles> find_model_files(const fs::path& path) {
  std::error_code error;
  if (fs::is_regular_file(path, error)) {
    if (is_gguf_name(path) || is_gguf_file(path)) return ModelFiles{path, ModelForm::gguf, false};
    return std::nullopt;
  }
  const bool mistral = has(path, kParams);
  const bool weights = has(path, "model.safetensors") || has(path, "model.safetensors.index.json");
  if (has(path, kConfig) && (weights || !mistral))
    return ModelFiles{path, ModelForm::hugging_face, mistral};
  if (mistral) return ModelFiles{path, ModelForm::mistral, false};
  const auto files = gguf_files(path);
  if (files.empty()) return std::nullopt;
  if (files.size() > 1)
    throw Error(fmt::format("{} has {} GGUF files; name one of them, such as {}", path.string(),
                            files.size(), files.front().string()));
  return ModelFiles{files.front(), ModelForm::gguf, false};
}

ModelConfig read_model_config(const ModelFiles& files, const TensorSource& tensors,
                              const std::function<void(const std::string&)>& note) {
  switch (files.form) {
    case ModelForm::hugging_face:
      return settle_config(ModelConfig::load(files.path), tensors, note);
    case ModelForm::mistral:
      return settle_config(mistral_config(Json::load(files.path / kParams, kConfigLimits)), tensors,
                           note);
    case ModelForm::gguf:
      return gguf_config(dynamic_cast<const GgufTensors&>(tensors));
  }
  return {};
}

std::unique_ptr<TensorSource> open_tensors(const ModelFiles& files) {
  switch (files.form) {
    case ModelForm::hugging_face:
      return open_hugging_face(files.path);
    case ModelForm::mistral:
      return open_mistral(files.path);
    case ModelForm::gguf:
      return std::make_unique<GgufTensors>(files.path);
  }
  return nullptr;
}

}  // namespace mixtral
