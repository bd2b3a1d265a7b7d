#include "open/companions.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

template <size_t N>
bool starts_with_any(std::string_view name, const std::string_view (&beginnings)[N]) {
  return std::ranges::any_of(beginnings,
                             [&](std::string_view start) { return name.starts_with(start); });
}

}  // namespace

bool is_tokenizer_file(std::string_view name) {
  constexpr std::string_view kBeginnings[] = {
      "tokenizer.", "byte_tokenizer.", "vocab.", "merges.", "tekken", "spiece.", "sentencepiece."};
  return starts_with_any(name, kBeginnings) || name.ends_with(".tiktoken");
}

bool is_companion(std::string_view name) {
  constexpr std::string_view kBeginnings[] = {"tokenizer_",
                                              "special_tokens_map.",
                                              "added_tokens.",
                                              "chat_template",
                                              "generation_config.",
                                              "LICENSE",
                                              "LICENCE",
                                              "NOTICE",
                                              "USE_POLICY"};
  return is_tokenizer_file(name) || starts_with_any(name, kBeginnings) || name.ends_with(".jinja");
}

std::vector<std::string> copy_companions(const fs::path& from, const fs::path& to) {
  std::vector<std::string> copied;
  const auto copy = [&](const fs::path& file, const std::string& name) {
    std::error_code error;
    fs::create_directories((to / name).parent_path(), error);
    fs::copy_file(file, to / name, fs::copy_options::overwrite_existing, error);
    if (!error) fs::permissions(to / name, fs::perms::owner_write, fs::perm_options::add, error);
    if (error)
      throw Error(
          fmt::format("cannot copy {} to {}: {}", file.string(), to.string(), error.message()));
    copied.push_back(name);
  };
  // transformers keeps a model's further templates there.
  constexpr std::string_view kTemplates = "additional_chat_templates";
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(from)) {
    const std::string name = entry.path().filename().string();
    if (entry.is_regular_file(error) && is_companion(name)) copy(entry.path(), name);
    if (name != kTemplates || !entry.is_directory(error)) continue;
    for (const auto& more : fs::directory_iterator(entry.path(), error))
      if (more.is_regular_file(error) && more.path().extension() == ".jinja")
        copy(more.path(), fmt::format("{}/{}", name, more.path().filename().string()));
  }
  std::ranges::sort(copied);
  return copied;
}

}  // namespace mixtral
