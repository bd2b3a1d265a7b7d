#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

namespace mixtral {

/// How many bytes a file has, and their 64-bit XXH3 (https://xxhash.com): enough to find damage,
/// not to stop someone who forges it.
struct FileChecksum {
  uint64_t bytes = 0;
  uint64_t xxh3 = 0;

  friend bool operator==(const FileChecksum&, const FileChecksum&) = default;
  std::string hex() const;  // xxh3 in 16 digits
};

/// A checksum taken piece by piece.
class Checksummer {
 public:
  Checksummer();
  ~Checksummer();
  Checksummer(const Checksummer&) = delete;
  Checksummer& operator=(const Checksummer&) = delete;

  void update(std::span<const std::byte> bytes);
  FileChecksum result() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// The checksum of some bytes, and of a file. The latter throws Error if it cannot be read.
FileChecksum checksum(std::span<const std::byte> bytes);
FileChecksum checksum_file(const std::filesystem::path& path);

}  // namespace mixtral
