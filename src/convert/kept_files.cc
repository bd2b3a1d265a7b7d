#include "convert/kept_files.h"

#include <fmt/format.h>

#include "base/base64.h"
#include "base/error.h"
#include "base/file.h"
#include "open/companions.h"
#include "text/utf8.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kText = "mixtral.file.", kBase64 = "mixtral.base64.";
constexpr uint64_t kLargestFile = uint64_t{64} << 20;

/// Names come from files: only plain ones may become files again.
bool is_plain_name(std::string_view name) {
  return !name.empty() && name.size() < 200 && !name.starts_with('.') &&
         name.find_first_of("/\\") == std::string_view::npos &&
         (name == "config.json" || is_companion(name));
}

}  // namespace

std::map<std::string, std::string> kept_files(const fs::path& directory) {
  std::map<std::string, std::string> files;
  std::error_code error;
  if (!fs::is_directory(directory, error)) return files;
  for (const auto& entry : fs::directory_iterator(directory)) {
    const std::string name = entry.path().filename().string();
    if (entry.is_regular_file(error) && is_plain_name(name))
      files.insert_or_assign(name, read_file(entry.path(), kLargestFile));
    if (name == kKeptConfig) files.emplace("config.json", read_file(entry.path(), kLargestFile));
  }
  return files;
}

void add_kept_files(const std::map<std::string, std::string>& files, GgufKeys& keys) {
  for (const auto& [name, contents] : files) {
    if (is_valid_utf8(contents))
      keys.add_text(std::string(kText) + name, contents);
    else
      keys.add_text(std::string(kBase64) + name, base64(contents));
  }
}

std::map<std::string, std::string> find_kept_files(const GgufHeader& header) {
  std::map<std::string, std::string> files;
  for (const auto& [key, value] : header.values()) {
    for (const std::string_view prefix : {kText, kBase64}) {
      if (!key.starts_with(prefix)) continue;
      const std::string name = key.substr(prefix.size());
      const auto text = header.text(key);
      if (!is_plain_name(name))
        throw Error(fmt::format("{}: expected the plain name of a file that goes with a model",
                                header.where(key)));
      const auto contents =
          prefix == kText ? std::optional(std::string(*text)) : from_base64(*text);
      if (!contents) throw Error(fmt::format("{}: is not base64", header.where(key)));
      files.emplace(name, *contents);
    }
  }
  return files;
}

std::string to_text(const OriginalTypes& types) {
  std::string text;
  for (const auto& [name, format] : types) text += fmt::format("{} {}\n", name, format.name());
  return text;
}

OriginalTypes parse_original_types(std::string_view text, std::string_view source) {
  OriginalTypes types;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    const size_t space = line.find(' ');
    const auto format = space == std::string_view::npos
                            ? std::nullopt
                            : ops::find_weight_format(line.substr(space + 1));
    if (!format || !format->dense())
      throw Error(fmt::format("{}: \"{}\": expected a tensor's name and its type", source,
                              printable(line)));
    types.emplace(line.substr(0, space), *format);
  }
  return types;
}

void add_original_types(const OriginalTypes& types, GgufKeys& keys) {
  if (!types.empty()) keys.add_text(kOriginalTypesKey, to_text(types));
}

OriginalTypes find_original_types(const GgufHeader& header) {
  const auto text = header.text(kOriginalTypesKey);
  return text ? parse_original_types(*text, header.where(kOriginalTypesKey)) : OriginalTypes();
}

}  // namespace mixtral
