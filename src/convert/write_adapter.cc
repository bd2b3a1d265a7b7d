#include "convert/write_adapter.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "base/file.h"
#include "base/pending_directory.h"
#include "base/printable.h"
#include "convert/adapter_updates.h"
#include "convert/model_format.h"
#include "convert/part_reader.h"
#include "io/gguf_types.h"
#include "io/gguf_writer.h"
#include "io/safetensors_writer.h"
#include "model/adapter_reader.h"
#include "model/peft_writer.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr double kMistralScale = 2;  // of mistral-inference's load_lora

/// A tensor of the adapter's file.
struct FileTensor {
  Shape shape;
  std::vector<float> values;
};
using FileTensors = std::map<std::string, FileTensor>;

std::string module_name(ModelFormat format, const TensorId& id) {
  const TensorNaming rows[] = {naming_in(format, id.kind)};
  std::string name = tensor_name({.name = "", .rows = rows}, id);
  constexpr std::string_view kEnd = ".weight";
  if (name.ends_with(kEnd)) name.resize(name.size() - kEnd.size());
  return name;
}

/// B's rows in the order of the format's matrix.
std::vector<float> rows_in(ModelFormat format, const AdapterUpdate& update,
                           const ModelConfig& config) {
  if (naming_in(format, update.id.kind).row_order == TensorNaming::RowOrder::same) return update.b;
  std::vector<float> rows(update.b.size());
  interleave_rows(reinterpret_cast<const std::byte*>(update.b.data()),
                  reinterpret_cast<std::byte*>(rows.data()), update.rows, config.head_dim,
                  update.rank * static_cast<int64_t>(sizeof(float)));
  return rows;
}

/// Puts one expert's matrix into the layer's stack; experts without an update stay zero.
void put_expert(FileTensors& tensors, const std::string& name, const ModelConfig& config,
                int64_t expert, Shape one, const std::vector<float>& values) {
  const auto count = static_cast<size_t>(one.numel());
  const Shape shape{config.num_experts, one[0], one[1]};
  FileTensor& stack = tensors[name];
  if (stack.values.empty())
    stack = {shape, std::vector<float>(count * static_cast<size_t>(config.num_experts))};
  if (stack.shape != shape)
    throw Error(
        fmt::format("{}: the experts of a layer have different ranks, but they are one "
                    "tensor there; choose another format",
                    name));
  std::ranges::copy(values, stack.values.begin() +
                                static_cast<std::ptrdiff_t>(static_cast<size_t>(expert) * count));
}

void write_tensors(const fs::path& file, FileTensors& tensors) {
  std::map<std::string, Tensor> views;
  for (auto& [name, tensor] : tensors)
    views.emplace(name, Tensor(tensor.values.data(), tensor.shape, Dtype::f32));
  write_safetensors(file, views);
}

int64_t write_peft(const AdapterFile& adapter, const ModelConfig& config, const fs::path& out) {
  const PeftLayout layout(adapter, config);
  FileTensors tensors;
  for (const AdapterModule& module : adapter.modules) {
    const TargetShape shape = target_shape(config, module.target);
    const int64_t r = module.rank;
    const auto slice = [](const std::vector<float>& all, int64_t group, int64_t count) {
      const auto begin = all.begin() + group * count;
      return std::vector<float>(begin, begin + count);
    };
    if (adapter_target(module.target).per_expert) {
      for (const int64_t e : module.experts) {
        tensors[layout.name(module, 'A', e)] = {{r, shape.inputs},
                                                slice(module.a, e, r * shape.inputs)};
        tensors[layout.name(module, 'B', e)] = {{shape.rows, r},
                                                slice(module.b, e, shape.rows * r)};
      }
      continue;
    }
    tensors[layout.name(module, 'A', -1)] = {{shape.groups * r, shape.inputs}, module.a};
    std::vector<float> b(module.b.size());  // the group fastest
    for (int64_t g = 0; g < shape.groups; ++g)
      for (int64_t row = 0; row < shape.rows; ++row)
        for (int64_t j = 0; j < r; ++j)
          b[static_cast<size_t>((row * r + j) * shape.groups + g)] =
              module.b[static_cast<size_t>((g * shape.rows + row) * r + j)];
    tensors[layout.name(module, 'B', -1)] = {{shape.rows, r * shape.groups}, std::move(b)};
  }
  for (const auto& [name, shape] : layout.zeros())
    tensors[name] = {shape, std::vector<float>(static_cast<size_t>(shape.numel()))};
  write_file(out / "adapter_config.json", layout.config());
  write_tensors(out / "adapter_model.safetensors", tensors);
  return static_cast<int64_t>(tensors.size());
}

/// The paths below a layer that mlx-lm puts an adapter on, which must be the same in each of the
/// last layers.
std::set<std::string> mlx_keys(const std::vector<AdapterUpdate>& updates, const ModelConfig& config,
                               int64_t& layers) {
  std::map<int64_t, std::set<std::string>> keys;
  for (const AdapterUpdate& update : updates) {
    if (update.id.layer < 0)
      throw Error("lm_head: mlx-lm puts adapters on the layers alone; choose another format");
    const std::string name = module_name(ModelFormat::mlx, update.id);
    keys[update.id.layer].insert(
        name.substr(fmt::format("model.layers.{}.", update.id.layer).size()));
  }
  const auto& last = keys[config.num_layers - 1];
  layers = config.num_layers - keys.begin()->first;
  for (int64_t layer = keys.begin()->first; layer < config.num_layers; ++layer)
    if (keys[layer] != last)
      throw Error(
          fmt::format("layer {}: mlx-lm puts an adapter on the same matrices of each of "
                      "the last layers, and this one has others; choose another format",
                      layer));
  return last;
}

int64_t write_mlx(const AdapterFile& adapter, const ModelConfig& config, const fs::path& out) {
  std::vector<AdapterUpdate> updates = updates_of(adapter, config);
  int64_t layers = 0;
  const auto keys = mlx_keys(updates, config, layers);
  const double scale = updates.front().scale;
  const int64_t rank = updates.front().rank;
  FileTensors tensors;
  for (AdapterUpdate& update : updates) {
    const std::string name = module_name(ModelFormat::mlx, update.id);
    if (update.rank != rank)
      throw Error(
          fmt::format("{}: its rank is {}, others' {}, and mlx-lm has one for all; choose "
                      "another format",
                      name, update.rank, rank));
    rescale(update, scale, "mlx-lm has one scale for all");
    if (update.id.expert >= 0) {
      put_expert(tensors, name + ".lora_a", config, update.id.expert, {rank, update.inputs},
                 update.a);
      put_expert(tensors, name + ".lora_b", config, update.id.expert, {update.rows, rank},
                 update.b);
    } else {
      tensors[name + ".lora_a"] = {{update.inputs, rank},
                                   transposed(update.a, rank, update.inputs)};
      tensors[name + ".lora_b"] = {{rank, update.rows}, transposed(update.b, update.rows, rank)};
    }
  }
  const ordered_json json{
      {"fine_tune_type", "lora"},
      {"num_layers", layers},
      {"lora_parameters",
       {{"rank", rank}, {"scale", scale}, {"dropout", adapter.dropout}, {"keys", keys}}}};
  write_file(out / "adapter_config.json", json.dump(2) + "\n");
  write_tensors(out / "adapters.safetensors", tensors);
  return static_cast<int64_t>(tensors.size());
}

int64_t write_mistral(const AdapterFile& adapter, const ModelConfig& config, const fs::path& out) {
  FileTensors tensors;
  for (AdapterUpdate& update : updates_of(adapter, config)) {
    rescale(update, kMistralScale, "mistral-inference multiplies every update by 2 (its scaling)");
    const std::string name = module_name(ModelFormat::mistral, update.id);
    tensors[name + ".lora_A.weight"] = {{update.rank, update.inputs}, update.a};
    tensors[name + ".lora_B.weight"] = {{update.rows, update.rank},
                                        rows_in(ModelFormat::mistral, update, config)};
  }
  write_tensors(out / "lora.safetensors", tensors);
  return static_cast<int64_t>(tensors.size());
}

int64_t write_gguf(const AdapterFile& adapter, const ModelConfig& config, const fs::path& out) {
  std::vector<AdapterUpdate> updates = updates_of(adapter, config);
  const double alpha = updates.front().scale * static_cast<double>(updates.front().rank);
  FileTensors tensors;
  for (AdapterUpdate& update : updates) {
    rescale(update, alpha / static_cast<double>(update.rank),
            "a GGUF file has one alpha, which llama.cpp divides by each rank");
    const std::string name = module_name(ModelFormat::gguf, update.id) + ".weight";
    const std::vector<float> b = rows_in(ModelFormat::gguf, update, config);
    const Shape a_shape{update.rank, update.inputs}, b_shape{update.rows, update.rank};
    if (update.id.expert >= 0) {
      put_expert(tensors, name + ".lora_a", config, update.id.expert, a_shape, update.a);
      put_expert(tensors, name + ".lora_b", config, update.id.expert, b_shape, b);
    } else {
      tensors[name + ".lora_a"] = {a_shape, update.a};
      tensors[name + ".lora_b"] = {b_shape, b};
    }
  }
  GgufKeys keys;
  keys.add_text("general.architecture", "llama");
  keys.add_text("general.type", "adapter");
  keys.add_text("general.name", fs::path(adapter.base_model).filename().string() + " LoRA");
  keys.add_text("adapter.type", "lora");
  keys.add_f32("adapter.lora.alpha", static_cast<float>(alpha));
  std::vector<PlannedGgufTensor> plan;
  for (const auto& [name, tensor] : tensors) {
    std::vector<int64_t> dims;
    dims.reserve(Shape::kMaxRank);
    for (int i = 0; i < tensor.shape.rank(); ++i) dims.push_back(tensor.shape[i]);
    plan.push_back({.name = name,
                    .dims = std::move(dims),
                    .type = find_gguf_type("F32")->number,
                    .bytes = tensor.values.size() * sizeof(float)});
  }
  GgufWriter writer(out, keys, std::move(plan));
  for (const auto& [name, tensor] : tensors) writer.write(std::as_bytes(std::span(tensor.values)));
  writer.finish();
  return static_cast<int64_t>(tensors.size());
}

/// Throws Error unless both change the same matrices by the same updates.
void refuse_difference(const AdapterFile& before, const AdapterFile& after,
                       const ModelConfig& config) {
  const auto are = updates_of(after, config);
  std::map<TensorId, const AdapterUpdate*> by_id;
  for (const AdapterUpdate& update : are) by_id[update.id] = &update;
  for (AdapterUpdate& was : updates_of(before, config)) {
    const auto found = by_id.find(was.id);
    const bool zero = std::ranges::all_of(was.b, [](float value) { return value == 0; });
    if (found == by_id.end() && zero) continue;  // updates of zero may be left out
    bool same = found != by_id.end() && found->second->rank == was.rank;
    if (same) {
      const AdapterUpdate& is = *found->second;
      const double ratio = was.scale / is.scale;
      same = is.a == was.a;
      for (size_t i = 0; same && i < was.b.size(); ++i)
        same = std::abs(static_cast<double>(is.b[i]) - ratio * static_cast<double>(was.b[i])) <=
               1e-6 * std::abs(static_cast<double>(is.b[i]));
    }
    if (!same)
      throw Error(
          fmt::format("{}: read again, its update is not the one that was written: nothing "
                      "was written; report this",
                      tensor_name(was.id)));
  }
}

}  // namespace

AdapterFormat parse_adapter_format(std::string_view name) {
  if (name == "peft" || name == "hf") return AdapterFormat::peft;
  if (name == "mlx") return AdapterFormat::mlx;
  if (name == "mistral") return AdapterFormat::mistral;
  if (name == "gguf") return AdapterFormat::gguf;
  throw UsageError(
      fmt::format("there is no format '{}' of adapters; choose peft, mlx, mistral or "
                  "gguf",
                  printable(name)));
}

int64_t write_adapter(const AdapterFile& adapter, const ModelConfig& config, AdapterFormat format,
                      const fs::path& out) {
  if (adapter.modules.empty())
    throw Error("the adapter changes nothing; there is nothing to write");
  PendingDirectory pending(out);
  const bool is_file = format == AdapterFormat::gguf;
  const fs::path written = is_file ? pending.path() / out.filename() : pending.path();
  int64_t count = 0;
  switch (format) {
    case AdapterFormat::peft:
      count = write_peft(adapter, config, written);
      break;
    case AdapterFormat::mlx:
      count = write_mlx(adapter, config, written);
      break;
    case AdapterFormat::mistral:
      count = write_mistral(adapter, config, written);
      break;
    case AdapterFormat::gguf:
      count = write_gguf(adapter, config, written);
      break;
  }
  refuse_difference(adapter, AdapterFile::load(written, config), config);
  if (is_file)
    pending.commit_file(out.filename());
  else
    pending.commit();
  return count;
}

}  // namespace mixtral
