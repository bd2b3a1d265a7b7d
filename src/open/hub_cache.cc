#include "open/hub_cache.h"

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/file.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

bool is_hub_word(std::string_view word) {
  return !word.empty() && word.size() <= 96 && word.front() != '.' && word.front() != '-' &&
         word.find("..") == std::string_view::npos &&
         std::ranges::all_of(word, [](unsigned char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                  c == '.' || c == '-' || c == '_';
         });
}

fs::path variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? fs::path(value) : fs::path();
}

/// The commit that refs/main names.
std::string main_revision(const fs::path& repository) {
  std::error_code error;
  const fs::path file = repository / "refs" / "main";
  if (!fs::is_regular_file(file, error)) return {};
  std::string text = read_file(file, 256);
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r' || text.back() == ' '))
    text.pop_back();
  return is_hub_word(text) ? text : std::string();
}

}  // namespace

bool is_hub_name(std::string_view name) {
  const size_t slash = name.find('/');
  return slash != std::string_view::npos && is_hub_word(name.substr(0, slash)) &&
         is_hub_word(name.substr(slash + 1));
}

fs::path hub_cache_folder() {
  for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"})
    if (fs::path folder = variable(name); !folder.empty()) return folder;
  if (const fs::path home = variable("HF_HOME"); !home.empty()) return home / "hub";
  if (const fs::path cache = variable("XDG_CACHE_HOME"); !cache.empty())
    return cache / "huggingface" / "hub";
  const fs::path home = variable("HOME");
  return home.empty() ? fs::path() : home / ".cache" / "huggingface" / "hub";
}

std::optional<fs::path> find_in_hub_cache(std::string_view name) {
  const fs::path cache = hub_cache_folder();
  if (!is_hub_name(name) || cache.empty()) return std::nullopt;
  std::string folder = "models--" + std::string(name);
  folder.replace(folder.find('/'), 1, "--");
  const fs::path repository = cache / folder, snapshots = repository / "snapshots";
  std::error_code error;
  if (const std::string revision = main_revision(repository);
      !revision.empty() && fs::is_directory(snapshots / revision, error))
    return snapshots / revision;
  std::vector<fs::path> revisions;
  for (const auto& entry : fs::directory_iterator(snapshots, error))
    if (entry.is_directory(error)) revisions.push_back(entry.path());
  if (revisions.size() != 1) return std::nullopt;
  return revisions.front();
}

}  // namespace mixtral
