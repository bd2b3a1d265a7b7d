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
#include "io/tensor_source.h"

namespace mixtral {

/// One tensor of a safetensors file, as its header describes it.
struct SafetensorsEntry : TensorEntry {
  uint64_t begin = 0, end = 0;  // bytes, from the start of the data section

  uint64_t bytes() const { return end - begin; }
};

/// The header of a safetensors file (https://github.com/huggingface/safetensors, "Format"): eight
/// bytes of little-endian length, then a JSON object {name: {dtype, shape, data_offsets}}, padded
/// with spaces; then the tensors' bytes, without holes.
struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  // in the order of their data
  std::map<std::string, std::string> metadata;
  uint64_t data_begin = 0;  // where the data section starts in the file

  /// Checks everything the format promises before anything is allocated for tensors: sizes,
  /// types, shapes, offsets without holes or overlaps, names, no bytes left over. `file` is the
  /// whole file, `source` its name in errors. Throws Error naming source, tensor and rule.
  static SafetensorsHeader parse(std::span<const std::byte> file, std::string_view source);
};

/// A safetensors file, mapped read-only.
class SafetensorsFile {
 public:
  /// Throws Error if the file cannot be opened or breaks a rule of the format.
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return file_.path(); }
  /// Where the data section starts in the file.
  uint64_t data_begin() const { return header_.data_begin; }
  const std::vector<SafetensorsEntry>& entries() const { return header_.entries; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }

  /// The tensor of that name, or null.
  const SafetensorsEntry* find(std::string_view name) const;
  /// The tensor of that name. Throws Error naming file and tensor when it is absent.
  const SafetensorsEntry& at(std::string_view name) const;

  /// The raw bytes of an entry of this file.
  std::span<const std::byte> bytes(const SafetensorsEntry& entry) const;

  /// A tensor in place: read-only memory, valid as long as this object. Throws Error when its type
  /// is not one of Dtype's, its rank is above four, or the file does not align it to its elements.
  Tensor view(std::string_view name) const;

  /// Copies a tensor into host memory of the same shape, converting between floating-point types.
  /// Throws Error when the shape differs or the types do not convert. Alignment does not matter.
  void read_into(std::string_view name, const Tensor& to) const;

  /// The same for `to.numel()` elements, row-major from element `first` on, into any shape.
  void read(std::string_view name, int64_t first, const Tensor& to) const;

 private:
  MappedFile file_;
  SafetensorsHeader header_;
  std::unordered_map<std::string_view, size_t> index_;  // into header_.entries, by their names
};

}  // namespace mixtral
