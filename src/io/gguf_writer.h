#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "io/checksum.h"
#include "io/gguf.h"

namespace mixtral {

/// The key-values of a GGUF file, encoded in the order in which they are added. The format is that
/// of docs/gguf.md in the ggml project: little-endian, version 3.
class GgufKeys {
 public:
  void add_u32(std::string_view key, uint32_t value);
  void add_u64(std::string_view key, uint64_t value);
  void add_f32(std::string_view key, float value);
  void add_bool(std::string_view key, bool value);
  void add_text(std::string_view key, std::string_view value);
  void add_texts(std::string_view key, std::span<const std::string> values);
  void add_f32s(std::string_view key, std::span<const float> values);
  void add_i32s(std::string_view key, std::span<const int32_t> values);
  /// A value of another file, byte for byte.
  void add_copy(std::string_view key, const GgufValue& value);

  uint64_t count() const { return count_; }
  const std::string& encoded() const { return encoded_; }

 private:
  void begin(std::string_view key, GgufValueType type);
  void begin_array(std::string_view key, GgufValueType type, uint64_t count);

  std::string encoded_;
  uint64_t count_ = 0;
};

/// A tensor that will be written.
struct PlannedGgufTensor {
  std::string name;
  std::vector<int64_t> dims;  // outermost first; the file has them the other way round
  uint32_t type = 0;          // ggml's number of the type
  uint64_t bytes = 0;
};

/// The alignment of tensors, in bytes: each offset is a multiple of it.
inline constexpr uint64_t kGgufAlignment = 32;

/// Streams tensors into one GGUF file. The header comes first, from the plan; then the tensors in
/// its order, each in as many pieces as suits the caller. The file appears under its name only when
/// finish() has synced it.
class GgufWriter {
 public:
  /// Throws Error if the disk lacks the space, or the file cannot be created.
  GgufWriter(const std::filesystem::path& path, const GgufKeys& keys,
             std::vector<PlannedGgufTensor> plan);

  /// The next bytes of the tensor that is being written. They may not pass its end.
  void write(std::span<const std::byte> bytes);
  /// Syncs and renames the file, after the last tensor. Returns its checksum.
  FileChecksum finish();

 private:
  void emit(std::span<const std::byte> bytes);

  std::vector<PlannedGgufTensor> plan_;
  AtomicFile file_;
  Checksummer sum_;
  size_t next_ = 0;      // tensor that is being written
  uint64_t filled_ = 0;  // bytes of it that were
};

}  // namespace mixtral
