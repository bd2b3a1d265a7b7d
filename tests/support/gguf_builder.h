#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/file.h"
#include "io/gguf.h"

namespace mixtral::testing {

/// The bytes of a GGUF file, right or wrong: it writes what it is told.
class GgufBuilder {
 public:
  std::string magic = "GGUF";
  uint32_t version = 3;
  uint64_t alignment = 32;  // of the data; a key says so only where one is added

  /// A key with bytes of a value, or of items where `type` is array.
  GgufBuilder& key(std::string_view name, uint32_t type, std::string_view value) {
    append_text(keys_, name);
    append(keys_, type);
    keys_ += value;
    ++key_count_;
    return *this;
  }
  GgufBuilder& key(std::string_view name, std::string_view text) {
    std::string value;
    append_text(value, text);
    return key(name, 8, value);
  }
  GgufBuilder& key(std::string_view name, const char* text) {
    return key(name, std::string_view(text));
  }
  template <class T>
    requires std::is_arithmetic_v<T>
  GgufBuilder& key(std::string_view name, T number) {
    std::string value;
    append(value, number);
    return key(name, type_of<T>(), value);
  }
  template <class T>
    requires std::is_arithmetic_v<T>
  GgufBuilder& key(std::string_view name, const std::vector<T>& items) {
    std::string value;
    append(value, type_of<T>());
    append(value, uint64_t{items.size()});
    for (const T item : items) append(value, item);
    return key(name, 9, value);
  }
  GgufBuilder& key(std::string_view name, const std::vector<std::string>& items) {
    std::string value;
    append(value, uint32_t{8});
    append(value, uint64_t{items.size()});
    for (const std::string& item : items) append_text(value, item);
    return key(name, 9, value);
  }

  /// A tensor at the next place of the data. `dims` are outermost first.
  GgufBuilder& tensor(std::string_view name, const std::vector<uint64_t>& dims, uint32_t type,
                      std::string_view data) {
    tensor_at(name, dims, type, data_.size());
    data_ += data;
    data_.resize((data_.size() + alignment - 1) / alignment * alignment);
    return *this;
  }
  GgufBuilder& tensor(std::string_view name, const std::vector<uint64_t>& dims,
                      std::span<const float> values) {
    return tensor(name, dims, 0,
                  {reinterpret_cast<const char*>(values.data()), values.size_bytes()});
  }
  /// A tensor in the list, without data.
  GgufBuilder& tensor_at(std::string_view name, const std::vector<uint64_t>& dims, uint32_t type,
                         uint64_t offset) {
    append_text(tensors_, name);
    append(tensors_, static_cast<uint32_t>(dims.size()));
    for (auto dim = dims.rbegin(); dim != dims.rend(); ++dim) append(tensors_, *dim);
    append(tensors_, type);
    append(tensors_, offset);
    ++tensor_count_;
    return *this;
  }

  std::string bytes() const { return bytes(tensor_count_, key_count_); }
  /// With other counts than those of what was added.
  std::string bytes(uint64_t tensor_count, uint64_t key_count) const {
    std::string all = magic;
    append(all, version);
    append(all, tensor_count);
    append(all, key_count);
    all += keys_ + tensors_;
    all.resize((all.size() + alignment - 1) / alignment * alignment);
    return all + data_;
  }
  std::filesystem::path write(const std::filesystem::path& path) const {
    write_file(path, bytes());
    return path;
  }

  template <class T>
  static void append(std::string& to, T value) {
    char bytes[sizeof(T)];
    std::memcpy(bytes, &value, sizeof(T));
    to.append(bytes, sizeof(T));
  }
  static void append_text(std::string& to, std::string_view text) {
    append(to, uint64_t{text.size()});
    to += text;
  }

 private:
  template <class T>
  static constexpr uint32_t type_of() {
    if constexpr (std::is_same_v<T, bool>) return 7;
    if constexpr (std::is_same_v<T, float>) return 6;
    if constexpr (std::is_same_v<T, double>) return 12;
    constexpr bool sign = std::is_signed_v<T>;
    switch (sizeof(T)) {
      case 1:
        return sign ? 1 : 0;
      case 2:
        return sign ? 3 : 2;
      case 4:
        return sign ? 5 : 4;
      default:
        return sign ? 11 : 10;
    }
  }

  std::string keys_, tensors_, data_;
  uint64_t key_count_ = 0, tensor_count_ = 0;
};

}  // namespace mixtral::testing
