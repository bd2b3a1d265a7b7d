#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/file.h"
#include "io/gguf_types.h"
#include "io/tensor_source.h"

namespace mixtral {

/// The type of a value in a GGUF file's list of keys, by its number there.
enum class GgufValueType : uint32_t {
  u8,
  i8,
  u16,
  i16,
  u32,
  i32,
  f32,
  boolean,
  text,
  array,
  u64,
  i64,
  f64,
};
std::string_view to_string(GgufValueType type);
/// Bytes of a value of that type, which is neither a text nor an array.
uint64_t width_of(GgufValueType type);

/// A value as it stands in the file.
struct GgufValue {
  GgufValueType type = GgufValueType::u8;
  GgufValueType item_type = GgufValueType::u8;  // of an array
  uint64_t count = 1;                           // of an array's items
  std::span<const std::byte> bytes;  // the value; of an array, the items; of a text, its letters
};

/// One tensor of a GGUF file.
struct GgufEntry : TensorEntry {
  const GgufType* stored = nullptr;
  uint64_t begin = 0, end = 0;  // bytes, from the start of the data section
};

/// What a GGUF file says before its tensors' bytes: keys with values, and the list of tensors
/// (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian).
class GgufHeader {
 public:
  /// Checks every count, length, type, dimension, alignment and offset before anything of that size
  /// is allocated. `file` is the whole file, which must outlive the header, and `source` its name
  /// in errors. Throws Error naming source, key or tensor, and rule.
  static GgufHeader parse(std::span<const std::byte> file, std::string_view source);

  uint32_t version() const { return version_; }
  uint64_t alignment() const { return alignment_; }
  /// Where the data section starts in the file.
  uint64_t data_begin() const { return data_begin_; }
  /// In the order of their data.
  const std::vector<GgufEntry>& entries() const { return entries_; }
  const std::map<std::string, GgufValue, std::less<>>& values() const { return values_; }

  // The value of a key; nothing where the key is absent. Each throws Error "SOURCE: the key "KEY"
  // is
  // ..." when it is of another type.
  std::optional<int64_t> integer(std::string_view key) const;  // of any width
  std::optional<double> number(std::string_view key) const;    // an integer, too
  std::optional<bool> boolean(std::string_view key) const;
  std::optional<std::string_view> text(std::string_view key) const;
  std::optional<std::vector<std::string_view>> texts(std::string_view key) const;
  std::optional<std::vector<float>> floats(std::string_view key) const;
  std::optional<std::vector<int64_t>> integers(std::string_view key) const;
  /// "SOURCE: the key "KEY"": what errors about its value begin with.
  std::string where(std::string_view key) const;

 private:
  friend class GgufReader;
  const GgufValue* find(std::string_view key) const;
  [[noreturn]] void mismatch(std::string_view key, std::string_view expected) const;
  const GgufValue* find_array(std::string_view key, std::string_view expected) const;

  std::string source_;
  uint32_t version_ = 0;
  uint64_t alignment_ = 32;
  uint64_t data_begin_ = 0;
  std::map<std::string, GgufValue, std::less<>> values_;
  std::vector<GgufEntry> entries_;
};

/// A GGUF file, mapped read-only.
class GgufFile {
 public:
  /// Throws Error if the file cannot be opened or breaks a rule of the format.
  explicit GgufFile(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return file_.path(); }
  const GgufHeader& header() const { return header_; }
  /// The tensor of that name, or null.
  const GgufEntry* find(std::string_view name) const;
  /// The raw bytes of an entry of this file.
  std::span<const std::byte> bytes(const GgufEntry& entry) const;

 private:
  MappedFile file_;
  GgufHeader header_;
  std::unordered_map<std::string_view, size_t> index_;  // into the header's entries
};

/// Whether a file begins as GGUF files do. False where it cannot be read.
bool is_gguf_file(const std::filesystem::path& path);

}  // namespace mixtral
