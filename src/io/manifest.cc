#include "io/manifest.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>

#include "base/error.h"
#include "base/file.h"
#include "base/temporary_name.h"
#include "io/json.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

bool stays_inside(const fs::path& name) {
  if (name.empty() || name.is_absolute()) return false;
  for (const auto& part : name)
    if (part == ".." || part == ".") return false;
  return true;
}

FileChecksum read_checksum(const Json& json) {
  FileChecksum sum;
  const int64_t bytes = json.at("bytes").as_int();
  if (bytes < 0)
    throw Error(fmt::format("{}: expected a size, found {}", json.at("bytes").where(), bytes));
  sum.bytes = static_cast<uint64_t>(bytes);
  const std::string& hex = json.at("xxh3").as_string();
  const auto [end, error] = std::from_chars(hex.data(), hex.data() + hex.size(), sum.xxh3, 16);
  // As they are written: a letter of the other case would be a flipped bit.
  const bool lower = std::ranges::none_of(hex, [](char c) { return c >= 'A' && c <= 'F'; });
  if (!lower || hex.size() != 16 || error != std::errc() || end != hex.data() + hex.size())
    throw Error(fmt::format("{}: expected 16 hexadecimal digits, found \"{}\"",
                            json.at("xxh3").where(), printable(hex)));
  return sum;
}

void require_size(const fs::path& path, const FileChecksum& expected) {
  std::error_code error;
  const uint64_t bytes = fs::file_size(path, error);
  if (error)
    throw Error(fmt::format("{} is named by {} but cannot be read: {}", path.string(),
                            Manifest::kFileName, error.message()));
  if (bytes != expected.bytes)
    throw Error(fmt::format("{} is damaged: it has {} bytes, but {} says {}", path.string(), bytes,
                            Manifest::kFileName, expected.bytes));
}

void require_contents(const fs::path& path, const FileChecksum& expected) {
  const FileChecksum found = checksum_file(path);
  if (found != expected)
    throw Error(fmt::format("{} is damaged: its checksum is {}, but {} says {}", path.string(),
                            found.hex(), Manifest::kFileName, expected.hex()));
}

/// What a manifest beside a file says of it, where there is one that can be read and it does.
std::optional<FileChecksum> listed_checksum(const fs::path& file) {
  std::error_code error;
  if (!fs::exists(file.parent_path() / Manifest::kFileName, error)) return std::nullopt;
  try {
    const Manifest manifest = Manifest::load(file.parent_path());
    const auto listed = manifest.files().find(file.filename().string());
    if (listed == manifest.files().end()) return std::nullopt;
    return listed->second;
  } catch (const Error&) {
    return std::nullopt;
  }
}

}  // namespace

Manifest Manifest::of_directory(const fs::path& directory) {
  Manifest manifest;
  for (const auto& entry : fs::recursive_directory_iterator(directory)) {
    const std::string name = entry.path().lexically_relative(directory).generic_string();
    if (entry.is_regular_file() && name != kFileName &&
        !is_temporary_name(entry.path().filename().string()))
      manifest.add(name, checksum_file(entry.path()));
  }
  return manifest;
}

Manifest Manifest::load(const fs::path& directory) {
  const Json json = Json::load(directory / kFileName);
  Manifest manifest;
  for (const auto& [name, value] : json.members()) {
    if (!stays_inside(name))
      throw Error(fmt::format("{}: expected a name inside the directory", value.where()));
    manifest.add(name, read_checksum(value));
  }
  return manifest;
}

void Manifest::save(const fs::path& directory) const {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  for (const auto& [name, sum] : files_) json[name] = {{"bytes", sum.bytes}, {"xxh3", sum.hex()}};
  write_file(directory / kFileName, json.dump(2) + "\n");
}

void Manifest::verify(const fs::path& directory) const {
  for (const auto& [name, expected] : files_) require_size(directory / name, expected);
  for (const auto& [name, expected] : files_) require_contents(directory / name, expected);
}

void verify_manifest(const fs::path& directory) { Manifest::load(directory).verify(directory); }

void verify_listed(const fs::path& file) {
  const auto listed = listed_checksum(file);
  if (!listed) return;
  require_size(file, *listed);
  require_contents(file, *listed);
}

std::string read_listed(const fs::path& file, uint64_t limit) {
  std::string text = read_file(file, limit);
  const FileChecksum found = checksum(std::as_bytes(std::span(text)));
  if (const auto listed = listed_checksum(file); listed && found != *listed)
    throw Error(fmt::format("{} is damaged: its checksum is {}, but {} says {}", file.string(),
                            found.hex(), Manifest::kFileName, listed->hex()));
  return text;
}

}  // namespace mixtral
