#include "io/safetensors_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "io/convert.h"
#include "io/disk_space.h"
#include "io/json.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kChunk = int64_t{1} << 20;  // elements converted and hashed at a time
constexpr size_t kAlignment = 8;              // of the data section, as the format asks
constexpr std::string_view kSingle = "model.safetensors";
constexpr std::string_view kIndex = "model.safetensors.index.json";

std::string_view type_name(Dtype dtype) {
  switch (dtype) {
    case Dtype::f64:
      return "F64";
    case Dtype::f32:
      return "F32";
    case Dtype::bf16:
      return "BF16";
    case Dtype::f16:
      return "F16";
    case Dtype::i64:
      return "I64";
    case Dtype::i32:
      return "I32";
    case Dtype::u8:
      return "U8";
  }
  return "?";
}

uint64_t total_bytes(const std::vector<PlannedTensor>& plan) {
  uint64_t bytes = 0;
  for (const auto& tensor : plan) bytes += tensor.bytes();
  return bytes;
}

void refuse_repeated_names(const std::vector<PlannedTensor>& plan, const fs::path& path) {
  std::set<std::string_view> names;
  for (const auto& tensor : plan)
    if (!names.insert(tensor.name).second)
      throw Error(fmt::format("cannot write {}: two tensors are named \"{}\"", path.string(),
                              printable(tensor.name)));
}

std::vector<PlannedTensor> aligned_order(std::vector<PlannedTensor> plan) {
  const bool whole = std::ranges::all_of(
      plan, [](const PlannedTensor& tensor) { return tensor.bytes() % kAlignment == 0; });
  if (whole) return plan;
  std::vector<PlannedTensor> ordered;
  ordered.reserve(plan.size());
  for (const int64_t size : {8, 4, 2, 1})
    for (auto& tensor : plan)
      if (size_of(tensor.dtype) == size) ordered.push_back(std::move(tensor));
  return ordered;
}

// The eight bytes of length and the padded JSON.
std::string header_text(const std::vector<PlannedTensor>& plan,
                        const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  if (!metadata.empty()) json["__metadata__"] = metadata;
  uint64_t offset = 0;
  for (const auto& tensor : plan) {
    auto shape = nlohmann::ordered_json::array();
    for (int i = 0; i < tensor.shape.rank(); ++i) shape.push_back(tensor.shape[i]);
    auto& entry = json[tensor.name];
    entry["dtype"] = tensor.type_name.empty() ? type_name(tensor.dtype) : tensor.type_name;
    entry["shape"] = std::move(shape);
    entry["data_offsets"] = {offset, offset + tensor.bytes()};
    offset += tensor.bytes();
  }
  std::string text = json.dump();
  text.resize((text.size() + kAlignment - 1) / kAlignment * kAlignment, ' ');
  std::string length(8, '\0');
  for (size_t i = 0; i < 8; ++i) length[i] = static_cast<char>(text.size() >> 8 * i & 0xff);
  return length + text;
}

// Whole tensors in order, each shard at most `shard_bytes` unless it holds a single tensor.
std::vector<std::vector<PlannedTensor>> split(const std::vector<PlannedTensor>& plan,
                                              uint64_t shard_bytes) {
  std::vector<std::vector<PlannedTensor>> shards(1);
  uint64_t filled = 0;
  for (const auto& tensor : plan) {
    if (!shards.back().empty() && filled + tensor.bytes() > shard_bytes) {
      shards.emplace_back();
      filled = 0;
    }
    shards.back().push_back(tensor);
    filled += tensor.bytes();
  }
  return shards;
}

// model.safetensors, its index, and model-00001-of-00002.safetensors.
bool is_weight_file(std::string_view name) {
  if (name == kSingle || name == kIndex) return true;
  constexpr std::string_view kPattern = "model-#####-of-#####.safetensors";
  return std::ranges::equal(name, kPattern, [](char c, char pattern) {
    return pattern == '#' ? c >= '0' && c <= '9' : c == pattern;
  });
}

}  // namespace

std::map<std::string, std::string> default_metadata() { return {{"format", "pt"}}; }

SafetensorsWriter::SafetensorsWriter(fs::path path, std::vector<PlannedTensor> plan,
                                     const std::map<std::string, std::string>& metadata)
    : path_(std::move(path)), plan_(aligned_order(std::move(plan))), file_(path_) {
  refuse_repeated_names(plan_, path_);
  const std::string header = header_text(plan_, metadata);
  require_disk_space(path_, header.size() + total_bytes(plan_));
  emit(std::as_bytes(std::span(header)));
}

SafetensorsWriter::~SafetensorsWriter() = default;

void SafetensorsWriter::emit(std::span<const std::byte> bytes) {
  file_.write(bytes);
  sum_.update(bytes);
}

void SafetensorsWriter::write(const Tensor& values) {
  CHECK(next_ < plan_.size(), "more tensors than planned");
  const PlannedTensor& planned = plan_[next_++];
  CHECK(values.shape() == planned.shape, planned.name + ": " + values.shape().to_string());
  CHECK(convertible(values.dtype(), planned.dtype), planned.name);
  const auto* data = static_cast<const std::byte*>(values.data());
  const int64_t count = planned.shape.numel();
  for (int64_t begin = 0; begin < count; begin += kChunk) {
    const int64_t chunk = std::min(kChunk, count - begin);
    const auto bytes = static_cast<size_t>(chunk * size_of(planned.dtype));
    const std::byte* from = data + begin * size_of(values.dtype());
    if (values.dtype() != planned.dtype) {
      if (scratch_.size() < bytes) scratch_.resize(bytes);
      convert_elements(from, values.dtype(), scratch_.data(), planned.dtype, chunk);
      from = scratch_.data();
    }
    emit({from, bytes});
  }
}

FileChecksum SafetensorsWriter::finish() {
  CHECK(next_ == plan_.size(), "fewer tensors than planned");
  file_.commit();
  return sum_.result();
}

FileChecksum write_safetensors(const fs::path& path, std::vector<PlannedTensor> plan,
                               const TensorValues& source,
                               const std::map<std::string, std::string>& metadata) {
  SafetensorsWriter writer(path, std::move(plan), metadata);
  for (const auto& tensor : writer.order()) writer.write(source(tensor));
  return writer.finish();
}

FileChecksum write_safetensors(const fs::path& path, const std::map<std::string, Tensor>& tensors,
                               const std::map<std::string, std::string>& metadata) {
  std::vector<PlannedTensor> plan;
  plan.reserve(tensors.size());
  for (const auto& [name, tensor] : tensors) plan.push_back({name, tensor.shape(), tensor.dtype()});
  return write_safetensors(
      path, std::move(plan), [&](const PlannedTensor& planned) { return tensors.at(planned.name); },
      metadata);
}

std::map<std::string, FileChecksum> write_model_tensors(const fs::path& directory,
                                                        const std::vector<PlannedTensor>& plan,
                                                        const TensorValues& source,
                                                        uint64_t shard_bytes) {
  refuse_repeated_names(plan, directory);
  require_disk_space(directory / kSingle, total_bytes(plan));
  const auto shards = split(plan, shard_bytes);
  std::map<std::string, FileChecksum> written;
  nlohmann::ordered_json index = {{"metadata", {{"total_size", total_bytes(plan)}}},
                                  {"weight_map", nlohmann::ordered_json::object()}};
  std::map<std::string, std::string> shard_of;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name =
        shards.size() == 1 ? std::string(kSingle)
                           : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    written[name] = write_safetensors(directory / name, shards[i], source);
    for (const auto& tensor : shards[i]) shard_of[tensor.name] = name;
  }
  if (shards.size() > 1) {
    for (const auto& [tensor, name] : shard_of) index["weight_map"][tensor] = name;
    const std::string text = index.dump(2) + "\n";
    write_file(directory / kIndex, text);
    written[std::string(kIndex)] = checksum(std::as_bytes(std::span(text)));
  }
  // A model.safetensors left from an earlier save would be read instead of the shards.
  std::vector<fs::path> stale;
  for (const auto& entry : fs::directory_iterator(directory)) {
    const std::string name = entry.path().filename().string();
    if (is_weight_file(name) && !written.contains(name)) stale.push_back(entry.path());
  }
  for (const auto& path : stale) fs::remove(path);
  return written;
}

}  // namespace mixtral
