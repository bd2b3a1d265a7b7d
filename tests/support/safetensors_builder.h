#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"

namespace mixtral::testing {

/// The bytes of a safetensors file with tensors of any type, also those that this program does not
/// write.
class SafetensorsBuilder {
 public:
  template <class T>
  SafetensorsBuilder& add(std::string_view name, std::string_view type,
                          const std::vector<int64_t>& dims, const std::vector<T>& values) {
    std::string shape;
    for (const int64_t dim : dims) shape += (shape.empty() ? "" : ",") + std::to_string(dim);
    const size_t begin = data_.size(), bytes = values.size() * sizeof(T);
    data_.resize(begin + bytes);
    std::memcpy(data_.data() + begin, values.data(), bytes);
    header_ += (header_.empty() ? "\"" : ",\"") + std::string(name) + "\":{\"dtype\":\"" +
               std::string(type) + "\",\"shape\":[" + shape + "],\"data_offsets\":[" +
               std::to_string(begin) + "," + std::to_string(data_.size()) + "]}";
    return *this;
  }

  void write(const std::filesystem::path& path) const {
    const std::string header = "{" + header_ + "}";
    std::string file(8, '\0');
    const uint64_t length = header.size();
    std::memcpy(file.data(), &length, sizeof length);
    write_file(path, file + header + data_);
  }

 private:
  std::string header_, data_;
};

}  // namespace mixtral::testing
