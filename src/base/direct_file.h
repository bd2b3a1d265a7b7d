#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>

namespace mixtral {

/// A file whose parts are read past the system's cache of pages, where its file system can, so that
/// a pass over a file larger than the memory drives nothing else out. Reading is thread-safe. A
/// file that changes under way is an Error at the next read, never a signal.
class DirectFile {
 public:
  static constexpr uint64_t kAlignment = 4096;  // of places, lengths and memory

  /// Throws Error naming the path.
  explicit DirectFile(std::filesystem::path path);
  ~DirectFile();
  DirectFile(DirectFile&& other) noexcept;
  DirectFile(const DirectFile&) = delete;
  DirectFile& operator=(const DirectFile&) = delete;

  const std::filesystem::path& path() const { return path_; }
  uint64_t size() const { return size_; }

  /// Gives back what the system's cache of pages holds of the file.
  void drop_cached() const;
  /// Bytes of room that reading `bytes` bytes from any place takes.
  static uint64_t room(uint64_t bytes) {
    return (bytes + 2 * kAlignment - 1) / kAlignment * kAlignment;
  }
  /// Reads `bytes` bytes from `begin` on into `to`, which is aligned to kAlignment and has
  /// room(bytes); returns where among them they stand. Throws Error where the file is shorter, has
  /// changed since it was opened, or cannot be read.
  std::span<const std::byte> read(uint64_t begin, uint64_t bytes, std::span<std::byte> to) const;

 private:
  void require_unchanged() const;

  std::filesystem::path path_;
  int descriptor_ = -1;
  bool direct_ = true;
  uint64_t size_ = 0;
  int64_t seconds_ = 0, nanoseconds_ = 0;  // of the last change
};

}  // namespace mixtral
