#pragma once

#include <filesystem>
#include <string>
#include <unordered_map>
#include <vector>

#include "io/safetensors.h"

namespace mixtral {

/// The tensors of a model: one safetensors file, or several with an index.
class ModelTensors {
 public:
  /// `path` is a directory with model.safetensors or model.safetensors.index.json and its shards,
  /// or one .safetensors file. Throws Error when files are missing or damaged (verify_listed), the
  /// index names a file outside the directory, or index and shards disagree.
  explicit ModelTensors(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  /// In the order of the files and of their data.
  const std::vector<std::string>& names() const { return names_; }
  const SafetensorsEntry* find(std::string_view name) const;
  const SafetensorsEntry& at(std::string_view name) const;  // throws Error when it is absent
  /// The file that holds a tensor, which must exist.
  const SafetensorsFile& file_of(std::string_view name) const;
  uint64_t bytes() const;  // of all tensors

  Tensor view(std::string_view name) const { return file_of(name).view(name); }
  void read_into(std::string_view name, const Tensor& to) const {
    file_of(name).read_into(name, to);
  }

  struct NonFinite {
    std::string name;
    int64_t index = 0;  // of the element, row-major
    double value = 0;
    std::filesystem::path file;
  };
  /// The first NaN or infinity of each tensor that has one, in the order of names(). Reads all the
  /// data.
  std::vector<NonFinite> non_finite() const;
  /// Throws Error naming file, tensor and element if there is a NaN or an infinity.
  void refuse_non_finite() const;

 private:
  void open_index(const std::filesystem::path& index);
  void add(SafetensorsFile file);

  std::filesystem::path path_;
  std::vector<SafetensorsFile> files_;
  std::vector<std::string> names_;
  std::unordered_map<std::string, size_t> file_of_;
};

}  // namespace mixtral
