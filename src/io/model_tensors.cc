#include "io/model_tensors.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "io/json.h"
#include "io/manifest.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSingle = "model.safetensors";
constexpr std::string_view kIndex = "model.safetensors.index.json";
constexpr size_t kMostShards = 10'000;
constexpr uint64_t kLongestLink = 1024;

bool is_base_name(std::string_view name) {
  return !name.empty() && name.size() <= 255 && !name.starts_with('.') &&
         name.find_first_of("/\\") == std::string_view::npos &&
         std::ranges::none_of(name, [](unsigned char c) { return c < 0x20; }) &&
         name.ends_with(".safetensors");
}

/// The file that a path stands for. Where links are not supported, git writes one as a short text
/// file with its target (core.symlinks); such a link is followed like any other.
fs::path linked_file(const fs::path& path) {
  std::error_code error;
  const auto size = fs::file_size(path, error);
  if (error || size == 0 || size > kLongestLink) return path;
  const std::string target = read_file(path, kLongestLink);
  if (std::ranges::any_of(target, [](unsigned char c) { return c < 0x20; })) return path;
  const fs::path file = path.parent_path() / target;
  return fs::is_regular_file(file, error) ? file : path;
}

/// What a directory without safetensors files holds instead, and what to do about it.
std::string instead_of_weights(const fs::path& directory) {
  std::error_code error;
  std::string shard;
  for (const auto& entry : fs::directory_iterator(directory, error)) {
    const std::string name = entry.path().filename().string();
    const std::string ending = entry.path().extension().string();
    for (const std::string_view other : {".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack"})
      if (ending == other && !name.starts_with("training_args"))
        return fmt::format(
            "its weights are in {}, a {} file, which is not read here; download the model's "
            ".safetensors files, or rewrite it with transformers: "
            "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OUT)",
            printable(name), ending);
    if (name.starts_with("model-") && ending == ".safetensors") shard = name;
  }
  if (!shard.empty())
    return fmt::format("it has shards such as {}; download their {}, too", printable(shard),
                       kIndex);
  if (fs::exists(directory / "adapter_config.json", error))
    return "it holds an adapter, not a model; name the model that the adapter is for, and this as "
           "the adapter";
  return "the download may not be complete";
}

}  // namespace

ModelTensors::ModelTensors(const fs::path& path) : path_(path) {
  if (!fs::is_directory(path)) {
    if (path.filename().string().ends_with(".index.json"))
      open_index(path);
    else
      add(path);
  } else if (fs::exists(path / kSingle)) {
    add(path / kSingle);
  } else if (fs::exists(path / kIndex)) {
    open_index(path / kIndex);
  } else {
    throw Error(fmt::format("{} has neither {} nor {}: {}", path.string(), kSingle, kIndex,
                            instead_of_weights(path)));
  }
  for (size_t i = 0; i < files_.size(); ++i)
    for (const auto& entry : files_[i].entries())
      if (place_.at(entry.name) == i) names_.push_back(entry.name);
}

void ModelTensors::add(const fs::path& path) {
  verify_listed(path);
  files_.emplace_back(linked_file(path));
  for (const auto& entry : files_.back().entries())
    place_.try_emplace(entry.name, files_.size() - 1);
}

void ModelTensors::open_index(const fs::path& index) {
  const std::string source = index.string();
  const Json json = Json::load(linked_file(index), {.bytes = uint64_t{64} << 20, .depth = 8});
  const auto& map = json.at("weight_map").members();
  const fs::path folder = index.has_parent_path() ? index.parent_path() : fs::path(".");

  std::vector<std::string> shards;
  for (const auto& [tensor, file] : map) {
    const std::string& name = file.as_string();
    if (!is_base_name(name))
      throw Error(
          fmt::format("{}: expected the plain name of a .safetensors file beside the index, "
                      "found \"{}\"",
                      file.where(), printable(name)));
    shards.push_back(name);
  }
  std::ranges::sort(shards);
  const auto repeated = std::ranges::unique(shards);
  shards.erase(repeated.begin(), repeated.end());
  if (shards.empty()) throw Error(fmt::format("{}: weight_map names no tensors", source));
  if (shards.size() > kMostShards)
    throw Error(
        fmt::format("{}: {} shards; at most {} are accepted", source, shards.size(), kMostShards));
  std::unordered_map<std::string, size_t> number;
  for (const auto& name : shards) {
    std::error_code error;
    if (!fs::exists(folder / name, error))
      throw Error(
          fmt::format("{} names the shard {}, which is not there; the download may not be complete",
                      source, (folder / name).string()));
    number.emplace(name, files_.size());
    add(folder / name);
  }
  // A tensor that is named but in no shard is missed where the model needs it (check_weights).
  for (const auto& [tensor, file] : map) {
    const size_t named = number.at(file.as_string());
    if (files_[named].find(tensor)) place_.at(tensor) = named;
  }
  for (size_t i = 0; i < files_.size(); ++i)
    for (const auto& entry : files_[i].entries())
      if (place_.at(entry.name) != i && !json.at("weight_map").find(entry.name))
        throw Error(
            fmt::format("{}: tensor \"{}\" is also in {}, and {} does not say which of them counts",
                        files_[i].path().string(), printable(entry.name),
                        files_[place_.at(entry.name)].path().string(), source));
}

const SafetensorsEntry* ModelTensors::find(std::string_view name) const {
  const auto found = place_.find(std::string(name));
  return found == place_.end() ? nullptr : files_[found->second].find(name);
}

const SafetensorsFile& ModelTensors::holder(std::string_view name) const {
  const auto found = place_.find(std::string(name));
  if (found == place_.end())
    throw Error(fmt::format("{}: there is no tensor \"{}\"", path_.string(), printable(name)));
  return files_[found->second];
}

}  // namespace mixtral
