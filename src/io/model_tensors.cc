#include "io/model_tensors.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "io/convert.h"
#include "io/json.h"
#include "io/manifest.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSingle = "model.safetensors";
constexpr std::string_view kIndex = "model.safetensors.index.json";
constexpr size_t kMostShards = 10'000;

bool is_base_name(std::string_view name) {
  return !name.empty() && name.size() <= 255 && !name.starts_with('.') &&
         name.find_first_of("/\\") == std::string_view::npos &&
         std::ranges::none_of(name, [](unsigned char c) { return c < 0x20; }) &&
         name.ends_with(".safetensors");
}

bool lies_within(const fs::path& file, const fs::path& folder) {
  const auto [end, rest] = std::ranges::mismatch(folder, file);
  return end == folder.end();
}

// A shard named by an index must be in the index's own folder, links followed. The one exception is
// Hugging Face's download cache, where REPO/snapshots/REVISION/ links to files in REPO/blobs/.
void check_location(const fs::path& shard, const fs::path& folder, const std::string& source) {
  std::error_code error;
  const fs::path file = fs::canonical(shard, error);
  if (error)
    throw Error(fmt::format("{} names the shard {}, which cannot be opened: {}", source,
                            shard.string(), error.message()));
  const fs::path home = fs::canonical(folder);
  if (lies_within(file, home)) return;
  const fs::path snapshots = home.parent_path();
  if (snapshots.filename() == "snapshots" && lies_within(file, snapshots.parent_path() / "blobs"))
    return;
  throw Error(fmt::format("{} names the shard {}, which is a link out of its folder", source,
                          shard.string()));
}

double element(const std::byte* data, Dtype dtype, int64_t index) {
  double value = 0;
  convert_elements(data + index * size_of(dtype), dtype, reinterpret_cast<std::byte*>(&value),
                   Dtype::f64, 1);
  return value;
}

}  // namespace

ModelTensors::ModelTensors(const fs::path& path) : path_(path) {
  if (!fs::is_directory(path)) {
    if (path.filename().string().ends_with(".index.json"))
      open_index(path);
    else
      add(SafetensorsFile(path));
  } else if (fs::exists(path / kSingle)) {
    add(SafetensorsFile(path / kSingle));
  } else if (fs::exists(path / kIndex)) {
    open_index(path / kIndex);
  } else {
    throw Error(fmt::format("{} has neither {} nor {}; it is not a model directory", path.string(),
                            kSingle, kIndex));
  }
}

void ModelTensors::add(SafetensorsFile file) {
  verify_listed(file.path());
  for (const auto& entry : file.entries()) {
    const auto [place, added] = file_of_.emplace(entry.name, files_.size());
    if (!added)
      throw Error(fmt::format("{}: tensor \"{}\" is also in {}", file.path().string(),
                              printable(entry.name), files_[place->second].path().string()));
    names_.push_back(entry.name);
  }
  files_.push_back(std::move(file));
}

void ModelTensors::open_index(const fs::path& index) {
  const std::string source = index.string();
  const Json json = Json::load(index, {.bytes = uint64_t{64} << 20, .depth = 8});
  const auto& map = json.at("weight_map").members();
  const fs::path folder = index.has_parent_path() ? index.parent_path() : fs::path(".");

  std::unordered_map<std::string, std::string> shard_of;  // tensor -> file name
  std::vector<std::string> shards;
  for (const auto& [tensor, file] : map) {
    const std::string& name = file.as_string();
    if (!is_base_name(name))
      throw Error(
          fmt::format("{}: expected the plain name of a .safetensors file beside the index, "
                      "found \"{}\"",
                      file.where(), printable(name)));
    shard_of.emplace(tensor, name);
    shards.push_back(name);
  }
  std::ranges::sort(shards);
  const auto repeated = std::ranges::unique(shards);
  shards.erase(repeated.begin(), repeated.end());
  if (shards.empty()) throw Error(fmt::format("{}: weight_map names no tensors", source));
  if (shards.size() > kMostShards)
    throw Error(
        fmt::format("{}: {} shards; at most {} are accepted", source, shards.size(), kMostShards));

  for (const auto& name : shards) {
    check_location(folder / name, folder, source);
    SafetensorsFile file(folder / name);
    for (const auto& entry : file.entries()) {
      const auto named = shard_of.find(entry.name);
      if (named == shard_of.end())
        throw Error(fmt::format("{}: tensor \"{}\" is not in the weight_map of {}",
                                file.path().string(), printable(entry.name), source));
      if (named->second != name)
        throw Error(fmt::format("{}: tensor \"{}\" should be in {} by the weight_map of {}",
                                file.path().string(), printable(entry.name), named->second,
                                source));
    }
    add(std::move(file));
  }
  for (const auto& [tensor, name] : map)
    if (!file_of_.contains(tensor))
      throw Error(fmt::format("{}: tensor \"{}\" should be in {}, but is not", source,
                              printable(tensor), printable(name.as_string())));

  const Json* metadata = json.find("metadata");
  const Json* total = metadata && metadata->is_object() ? metadata->find("total_size") : nullptr;
  if (total && (total->as_int() < 0 || static_cast<uint64_t>(total->as_int()) != bytes()))
    throw Error(fmt::format("{}: total_size is {}, but the shards' tensors have {} bytes", source,
                            total->as_int(), bytes()));
}

const SafetensorsEntry* ModelTensors::find(std::string_view name) const {
  const auto found = file_of_.find(std::string(name));
  return found == file_of_.end() ? nullptr : files_[found->second].find(name);
}

const SafetensorsEntry& ModelTensors::at(std::string_view name) const {
  return file_of(name).at(name);
}

const SafetensorsFile& ModelTensors::file_of(std::string_view name) const {
  const auto found = file_of_.find(std::string(name));
  if (found == file_of_.end())
    throw Error(fmt::format("{}: there is no tensor \"{}\"", path_.string(), printable(name)));
  return files_[found->second];
}

uint64_t ModelTensors::bytes() const {
  uint64_t bytes = 0;
  for (const auto& file : files_)
    for (const auto& entry : file.entries()) bytes += entry.bytes();
  return bytes;
}

std::vector<ModelTensors::NonFinite> ModelTensors::non_finite() const {
  std::vector<NonFinite> found;
  for (const auto& file : files_) {
    for (const auto& entry : file.entries()) {
      if (!entry.dtype) continue;
      const std::byte* data = file.bytes(entry).data();
      const int64_t index = find_non_finite(data, *entry.dtype, entry.numel());
      if (index >= 0)
        found.push_back({entry.name, index, element(data, *entry.dtype, index), file.path()});
    }
  }
  return found;
}

void ModelTensors::refuse_non_finite() const {
  const auto found = non_finite();
  if (found.empty()) return;
  const auto& first = found.front();
  throw Error(fmt::format("{}: tensor \"{}\" has {} at element {}{}; the weights are damaged",
                          first.file.string(), printable(first.name), first.value, first.index,
                          found.size() > 1
                              ? fmt::format(", and {} more tensors have others", found.size() - 1)
                              : std::string()));
}

}  // namespace mixtral
