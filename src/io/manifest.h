#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "io/checksum.h"

namespace mixtral {

/// The checksums of a directory's files: manifest.json = {"FILE": {"bytes": N, "xxh3": "16 hex
/// digits"}, ...}, with names relative to the directory.
class Manifest {
 public:
  static constexpr std::string_view kFileName = "manifest.json";

  /// Reads every regular file below `directory`, except its manifest and unfinished files.
  static Manifest of_directory(const std::filesystem::path& directory);
  /// Throws Error if manifest.json is missing, malformed, or names files outside the directory.
  static Manifest load(const std::filesystem::path& directory);

  /// Records a file whose checksum is known from writing it.
  void add(std::string name, FileChecksum sum) { files_[std::move(name)] = sum; }
  const std::map<std::string, FileChecksum>& files() const { return files_; }

  /// Writes manifest.json, atomically.
  void save(const std::filesystem::path& directory) const;

  /// Throws Error naming the first file, by name, that is missing or whose size or contents differ.
  /// Sizes are compared before any contents are read. Files that the manifest does not name are
  /// left alone.
  void verify(const std::filesystem::path& directory) const;

 private:
  std::map<std::string, FileChecksum> files_;
};

/// Manifest::load(directory).verify(directory).
void verify_manifest(const std::filesystem::path& directory);

/// Throws Error when a file differs from what a manifest beside it says of it. Without a manifest,
/// or with another program's file of that name, nothing is known and nothing checked.
void verify_listed(const std::filesystem::path& file);

/// The text of a file, checked in the same way and opened once. Throws Error also when it cannot be
/// read or is larger than `limit` bytes.
std::string read_listed(const std::filesystem::path& file, uint64_t limit);

}  // namespace mixtral
