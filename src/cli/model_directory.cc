#include "cli/model_directory.h"

#include <string>

#include "open/companions.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

bool is_of_a_model(const fs::directory_entry& entry) {
  const std::string name = entry.path().filename().string();
  if (name == "additional_chat_templates") return entry.is_directory() && !entry.is_symlink();
  return entry.is_regular_file() && !entry.is_symlink() &&
         (name == "config.json" || name == "manifest.json" || name == "params.json" ||
          name == "hf_config.json" || name == "receipt.json" || name.ends_with(".safetensors") ||
          name.ends_with(".safetensors.index.json") || is_companion(name));
}

}  // namespace

std::optional<fs::path> first_foreign_entry(const fs::path& directory) {
  std::optional<fs::path> first;
  for (const auto& entry : fs::directory_iterator(directory))
    if (!is_of_a_model(entry) && (!first || entry.path() < *first)) first = entry.path();
  return first;
}

}  // namespace mixtral
