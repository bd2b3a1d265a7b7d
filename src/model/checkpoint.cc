#include "model/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "nn/layout.h"

namespace mixtral {
namespace {

using Part = nn::Parameter::Part;

/// A file's tensor and where it goes: a parameter's part, or all of its parts as they are packed.
struct Load {
  std::string name;
  const nn::Parameter* parameter = nullptr;
  const Part* part = nullptr;
};

void check_shape(const ModelTensors& tensors, const std::string& name, const Shape& shape) {
  const SafetensorsEntry& entry = tensors.at(name);
  bool same = entry.dims.size() == static_cast<size_t>(shape.rank());
  for (int i = 0; same && i < shape.rank(); ++i)
    same = entry.dims[static_cast<size_t>(i)] == shape[i];
  if (!same)
    throw Error(fmt::format("{}: tensor {} has shape {}, but config.json asks for {}",
                            tensors.file_of(name).path().string(), name, entry.shape_text(),
                            shape.to_string()));
}

/// The name and shape under which transformers 5 packs a tensor of on_disk_tensors() with others.
std::optional<std::pair<std::string, Shape>> packed_place(const ModelConfig& config,
                                                          const std::string& name) {
  const size_t at = name.find("block_sparse_moe.");
  if (at == std::string::npos) return std::nullopt;
  const std::string prefix = name.substr(0, at) + "mlp.";
  const int64_t e = config.num_experts, f = config.intermediate_size, d = config.hidden_size;
  if (name.ends_with(".gate.weight")) return {{prefix + "gate.weight", {e, d}}};
  if (name.ends_with(".w2.weight")) return {{prefix + "experts.down_proj", {e, d, f}}};
  return {{prefix + "experts.gate_up_proj", {e, 2 * f, d}}};
}

/// Whether a left-over tensor is one that old files carry and no model needs.
bool is_known_extra(const std::string& name, bool tied) {
  return name.ends_with(".rotary_emb.inv_freq") || (tied && name == "lm_head.weight");
}

/// A staging area in ordinary memory for one tensor at a time.
class Staging {
 public:
  Tensor tensor(Shape shape, Dtype dtype) {
    const int64_t bytes = shape.numel() * size_of(dtype);
    if (buffer_.empty() || bytes > buffer_.bytes()) buffer_ = Buffer(host_memory(), bytes);
    return buffer_.tensor(shape, dtype);
  }

 private:
  Buffer buffer_;
};

/// A tensor of a file and where its elements are: values, or gradients.
struct Save {
  Tensor device;
  const nn::Parameter* parameter = nullptr;
  const Part* part = nullptr;
};
enum class What { values, gradients };

std::map<std::string, Save> plan_saves(const nn::ParameterSource& parameters, What what,
                                       Dtype dtype, std::vector<PlannedTensor>* plan) {
  std::map<std::string, Save> saves;
  parameters([&](nn::Parameter& p) {
    if (what == What::gradients && !p.grad) return;
    for (const Part& part : p.parts) {
      plan->push_back({.name = part.name, .shape = part.shape, .dtype = dtype});
      saves[part.name] = {what == What::values ? p.value_of(part) : p.grad_of(part), &p, &part};
    }
  });
  return saves;
}

/// [G, rows, r] as [rows, r · G] with the group fastest (Part::Order::group_fastest).
template <class T>
void group_fastest(const T* in, const Shape& shape, T* out) {
  for (int64_t g = 0; g < shape[0]; ++g)
    for (int64_t row = 0; row < shape[1]; ++row)
      for (int64_t j = 0; j < shape[2]; ++j)
        out[(row * shape[2] + j) * shape[0] + g] = in[(g * shape[1] + row) * shape[2] + j];
}

/// Fetches tensors from the device one at a time, in the file's order.
class Downloader {
 public:
  Downloader(Backend& backend, const std::map<std::string, Save>& saves)
      : backend_(backend), saves_(saves) {}

  Tensor operator()(const PlannedTensor& planned) {
    const Save& save = saves_.at(planned.name);
    const Dtype dtype = save.device.dtype();
    const Tensor host = staging_.tensor(planned.shape, dtype);
    backend_.download(save.device, host);
    if (save.part->order == Part::Order::same) return host;
    const Tensor turned = turned_.tensor(planned.shape, dtype);
    if (dtype == Dtype::f64)
      group_fastest(host.as<double>(), save.parameter->shape, turned.as<double>());
    else
      group_fastest(host.as<float>(), save.parameter->shape, turned.as<float>());
    return turned;
  }

 private:
  Backend& backend_;
  const std::map<std::string, Save>& saves_;
  Staging staging_, turned_;
};

FileChecksum save_file(Backend& backend, const nn::ParameterSource& parameters, What what,
                       const std::filesystem::path& path) {
  std::vector<PlannedTensor> plan;
  const auto saves = plan_saves(parameters, what, Dtype::f32, &plan);
  Downloader download(backend, saves);
  return write_safetensors(path, std::move(plan),
                           [&](const PlannedTensor& planned) { return download(planned); });
}

}  // namespace

void check_weights(const ModelConfig& config, const ModelTensors& tensors) {
  std::set<std::string, std::less<>> used;
  auto require = [&](const std::string& name, const Shape& shape) {
    if (!used.insert(name).second) return;
    if (!tensors.find(name))
      throw Error(fmt::format("{}: tensor {} is missing; config.json describes a model that has it",
                              tensors.path().string(), name));
    check_shape(tensors, name, shape);
  };
  for (const auto& [name, shape] : on_disk_tensors(config)) {
    const auto packed = packed_place(config, name);
    if (packed && tensors.find(packed->first))
      require(packed->first, packed->second);
    else
      require(name, shape);
  }
  for (const std::string& name : tensors.names()) {
    if (!used.contains(name) && !is_known_extra(name, config.tie_embeddings))
      throw Error(fmt::format("{}: tensor {} has no place in the model that config.json describes",
                              tensors.file_of(name).path().string(), name));
    const SafetensorsEntry& entry = tensors.at(name);
    if (used.contains(name) && !(entry.dtype && is_float(*entry.dtype)))
      throw Error(
          fmt::format("{}: tensor {} has the dtype {}, but weights must be F32, BF16, F16 or F64",
                      tensors.file_of(name).path().string(), name, entry.type));
  }
}

void load_weights(Backend& backend, Mixtral& model, const ModelTensors& tensors) {
  check_weights(model.config(), tensors);
  std::vector<Load> loads;
  model.for_each_parameter([&](nn::Parameter& p) {
    if (!p.packed_name.empty() && tensors.find(p.packed_name)) {
      loads.push_back({p.packed_name, &p});
      return;
    }
    for (const Part& part : p.parts) loads.push_back({part.name, &p, &part});
  });
  tensors.refuse_non_finite();
  nn::use_plain_rows(backend, model.parameters());
  Staging staging;
  nn::PartWriter writer(backend);
  for (const auto& [name, p, only] : loads) {
    const Tensor host = staging.tensor(only ? only->shape : p->shape, p->type);
    tensors.read_into(name, host);
    for (const Part& part : p->parts) {
      if (only && only != &part) continue;
      writer.write(*p, part, [&](const Tensor& device) {
        backend.upload(only ? host : host.view(part.offset, part.shape), device);
      });
    }
    backend.synchronize();  // the staging area is used again
  }
  nn::use_preferred_layouts(backend, model.parameters());
}

std::unique_ptr<Mixtral> load_model(Backend& backend, const std::filesystem::path& directory,
                                    const Mixtral::Options& options) {
  const ModelConfig config = ModelConfig::load(directory);
  const ModelTensors tensors(directory);
  check_weights(config, tensors);
  auto model = std::make_unique<Mixtral>(backend, config, options);
  load_weights(backend, *model, tensors);
  return model;
}

std::map<std::string, FileChecksum> save_model(Backend& backend, Mixtral& model,
                                               const std::filesystem::path& directory,
                                               Dtype dtype) {
  ModelConfig config = model.config();
  config.dtype = dtype;
  config.save(directory);
  std::vector<PlannedTensor> plan;
  const auto saves = plan_saves(model.parameters(), What::values, dtype, &plan);
  Downloader download(backend, saves);
  return write_model_tensors(directory, plan,
                             [&](const PlannedTensor& planned) { return download(planned); });
}

std::vector<std::pair<std::string, Shape>> on_disk_tensors(const ModelConfig& config) {
  std::vector<std::pair<std::string, Shape>> tensors;
  const int64_t d = config.hidden_size, f = config.intermediate_size;
  const int64_t q = config.num_heads * config.head_dim;
  const int64_t kv = config.num_kv_heads * config.head_dim;
  tensors.push_back({"model.embed_tokens.weight", {config.vocab_size, d}});
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    tensors.push_back({prefix + "input_layernorm.weight", {d}});
    tensors.push_back({prefix + "self_attn.q_proj.weight", {q, d}});
    tensors.push_back({prefix + "self_attn.k_proj.weight", {kv, d}});
    tensors.push_back({prefix + "self_attn.v_proj.weight", {kv, d}});
    tensors.push_back({prefix + "self_attn.o_proj.weight", {d, q}});
    tensors.push_back({prefix + "post_attention_layernorm.weight", {d}});
    tensors.push_back({prefix + "block_sparse_moe.gate.weight", {config.num_experts, d}});
    for (int64_t e = 0; e < config.num_experts; ++e) {
      const std::string expert = fmt::format("{}block_sparse_moe.experts.{}.", prefix, e);
      tensors.push_back({expert + "w1.weight", {f, d}});
      tensors.push_back({expert + "w2.weight", {d, f}});
      tensors.push_back({expert + "w3.weight", {f, d}});
    }
  }
  tensors.push_back({"model.norm.weight", {d}});
  if (!config.tie_embeddings) tensors.push_back({"lm_head.weight", {config.vocab_size, d}});
  return tensors;
}

FileChecksum save_parameters(Backend& backend, const nn::ParameterSource& parameters,
                             const std::filesystem::path& path) {
  return save_file(backend, parameters, What::values, path);
}

void save_gradients(Backend& backend, const nn::ParameterSource& parameters,
                    const std::filesystem::path& path) {
  save_file(backend, parameters, What::gradients, path);
}

}  // namespace mixtral
