#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "io/safetensors.h"

namespace mixtral {

/// The tensors of a model in safetensors files: one file, or several with an index.
class ModelTensors : public TensorSource {
 public:
  /// `path` is a directory with model.safetensors or model.safetensors.index.json and its shards,
  /// or one .safetensors file. Links are followed. A shard's tensors are read whether or not the
  /// index names them, from the file that has them; the index decides between two files that do.
  /// Throws Error when files are missing or damaged (verify_listed), the index names a file outside
  /// its directory, or two files have a tensor and the index does not say which counts.
  explicit ModelTensors(const std::filesystem::path& path);

  const std::filesystem::path& path() const override { return path_; }
  const std::vector<std::string>& names() const override { return names_; }
  const SafetensorsEntry* find(std::string_view name) const override;
  const std::filesystem::path& file_of(std::string_view name) const override {
    return holder(name).path();
  }
  std::span<const std::byte> raw(std::string_view name) const override {
    return holder(name).bytes(*find(name));
  }
  std::optional<FilePlace> file_place(std::string_view name) const override {
    const SafetensorsFile& file = holder(name);
    const SafetensorsEntry& entry = file.at(name);
    return FilePlace{file.path(), file.data_begin() + entry.begin, entry.bytes()};
  }
  void read(std::string_view name, int64_t first, const Tensor& to) const override {
    holder(name).read(name, first, to);
  }
  /// A tensor in place, as SafetensorsFile::view.
  Tensor view(std::string_view name) const { return holder(name).view(name); }

 private:
  void open_index(const std::filesystem::path& index);
  void add(const std::filesystem::path& file);
  const SafetensorsFile& holder(std::string_view name) const;

  std::filesystem::path path_;
  std::vector<SafetensorsFile> files_;
  std::vector<std::string> names_;
  std::unordered_map<std::string, size_t> place_;  // of a tensor: which of files_
};

}  // namespace mixtral
