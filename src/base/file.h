#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace mixtral {

/// A whole file mapped read-only. Throws Error naming the path if it cannot be opened.
class MappedFile {
 public:
  MappedFile() = default;
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  std::string_view text() const { return {reinterpret_cast<const char*>(data_), size_}; }
  const std::filesystem::path& path() const { return path_; }

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  std::filesystem::path path_;
};

/// The whole file as a string; refuses one larger than `limit` bytes. Throws Error naming the path.
std::string read_file(const std::filesystem::path& path, uint64_t limit = uint64_t{1} << 30);

/// A file that appears whole or not at all: written beside its place under a temporary name, then
/// synced and renamed over it by commit(). Destroyed without commit, it leaves nothing behind.
/// Every failed call throws Error with the path and the system's reason (disk full, no permission).
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }
  void commit();

 private:
  std::filesystem::path path_, temporary_;
  int descriptor_ = -1;
};

/// Writes `text` to `path` through an AtomicFile.
void write_file(const std::filesystem::path& path, std::string_view text);

/// Makes a rename or a new entry in `directory` durable.
void sync_directory(const std::filesystem::path& directory);

/// Makes everything below a directory durable, and the directory itself.
void sync_tree(const std::filesystem::path& directory);

/// Puts the directory `from` in the place of `to`, where at every instant (but for file systems
/// that cannot swap) either the old one or the new one stands; what stood there takes the name
/// `from`. Throws Error naming both.
void put_in_place(const std::filesystem::path& from, const std::filesystem::path& to);

}  // namespace mixtral
