#include "train/checkpoint_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <string_view>

#include "base/error.h"
#include "io/manifest.h"
#include "train/train_state.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kOptimizer = "optimizer.safetensors";

bool is_weights(std::string_view name) {
  return name.starts_with("model") && name.ends_with(".safetensors");
}

/// Whether a checkpoint's save writes a file of this name, and its readers believe it.
bool is_written(std::string_view name) {
  constexpr std::string_view kNames[] = {
      "config.json",         "generation_config.json",  "adapter_config.json", "tokenizer.model",
      "byte_tokenizer.json", "chat_template_name.json", TrainState::kFileName};
  return name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json") ||
         std::ranges::find(kNames, name) != std::end(kNames);
}

}  // namespace

bool is_checkpoint(const fs::path& directory) {
  std::error_code error;
  const std::string name = directory.filename().string();
  const bool step = name.size() == 13 && name.starts_with("step-") &&
                    std::all_of(name.begin() + 5, name.end(),
                                [](unsigned char c) { return c >= '0' && c <= '9'; });
  return step || fs::exists(directory / TrainState::kFileName, error);
}

void verify_checkpoint(const fs::path& directory, CheckpointUse use) {
  const fs::path file = directory / Manifest::kFileName;
  std::error_code error;
  if (!fs::exists(file, error))
    throw Error(
        fmt::format("the checkpoint {} has no {}, by which its files are checked; it was "
                    "not saved whole, or is damaged",
                    directory.string(), Manifest::kFileName));
  const Manifest manifest = Manifest::load(directory);
  const auto require = [&](std::string_view name) {
    if (!manifest.files().contains(std::string(name)))
      throw Error(
          fmt::format("{} does not list {}; the checkpoint is damaged", file.string(), name));
  };
  require(TrainState::kFileName);
  require(kOptimizer);
  const bool adapter = manifest.files().contains("adapter_config.json");
  require(adapter ? "adapter_model.safetensors" : "config.json");
  if (!adapter && std::ranges::none_of(manifest.files(),
                                       [](const auto& item) { return is_weights(item.first); }))
    require("model.safetensors");
  for (const auto& entry : fs::directory_iterator(directory)) {
    const std::string name = entry.path().filename().string();
    if (is_written(name)) require(name);
  }
  Manifest checked;
  for (const auto& [name, sum] : manifest.files()) {
    const bool inference = use == CheckpointUse::inference;
    if (inference && (is_weights(name) || name == "config.json")) continue;
    if (inference && name == kOptimizer && !fs::exists(directory / name, error)) continue;
    checked.add(name, sum);
  }
  checked.verify(directory);
}

}  // namespace mixtral
