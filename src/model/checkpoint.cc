#include "model/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "model/open_tensors.h"
#include "model/tensor_names.h"
#include "nn/layout.h"
#include "tensor/cutter.h"

namespace mixtral {
namespace {

using Part = nn::Parameter::Part;

void check_shape(const TensorSource& tensors, const TensorPlace& place) {
  const TensorEntry& entry = tensors.at(place.name);
  const Shape& shape = place.shape;
  bool same = entry.dims.size() == static_cast<size_t>(shape.rank());
  for (int i = 0; same && i < shape.rank(); ++i)
    same = entry.dims[static_cast<size_t>(i)] == shape[i];
  if (!same)
    throw Error(fmt::format("{}: tensor {} has shape {}, but the configuration asks for {}",
                            tensors.file_of(place.name).string(), place.name, entry.shape_text(),
                            shape.to_string()));
}

/// Whether a left-over tensor is one that old files carry and no model needs.
bool is_known_extra(const TensorSource& tensors, std::string_view name, bool tied) {
  for (const std::string_view ending :
       {".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached"})
    if (name.ends_with(ending)) return true;
  return tied && name == name_in_files(tensors, {.kind = TensorKind::head});
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

}  // namespace

ModelConfig settle_config(ModelConfig config, const TensorSource& tensors,
                          const std::function<void(const std::string&)>& note) {
  const auto embedding = find_place(tensors, config, {.kind = TensorKind::embedding});
  if (!embedding) return config;
  const TensorEntry& entry = tensors.at(embedding->name);
  if (config.dtype_is_open && entry.dtype && is_float(*entry.dtype)) config.dtype = *entry.dtype;
  config.dtype_is_open = false;
  const auto head = find_place(tensors, config, {.kind = TensorKind::head});
  if (!config.tie_embeddings || !head) return config;
  const TensorEntry& own = tensors.at(head->name);
  if (own.type == entry.type && own.dims == entry.dims &&
      std::ranges::equal(tensors.raw(head->name), tensors.raw(embedding->name)))
    return config;
  config.tie_embeddings = false;
  if (note)
    note(
        fmt::format("warning: {}: config.json sets tie_word_embeddings, but {} differs from the "
                    "embedding; it is used as it is",
                    tensors.path().string(), head->name));
  return config;
}

void check_weights(const ModelConfig& config, const TensorSource& tensors) {
  std::set<std::string, std::less<>> used;
  for_each_tensor(config, [&](const TensorId& id) {
    const auto place = find_place(tensors, config, id);
    if (!place)
      throw Error(
          fmt::format("{}: tensor {} is missing; the configuration describes a model that has it",
                      tensors.path().string(), name_in_files(tensors, id)));
    if (used.insert(place->name).second) check_shape(tensors, *place);
  });
  for (const std::string& name : tensors.names()) {
    if (!used.contains(name) && !is_known_extra(tensors, name, config.tie_embeddings))
      throw Error(
          fmt::format("{}: tensor {} has no place in the model that the configuration describes",
                      tensors.file_of(name).string(), name));
    const TensorEntry& entry = tensors.at(name);
    if (used.contains(name) && !entry.is_float())
      throw Error(
          fmt::format("{}: tensor {} has the dtype {}, but weights must be F32, BF16, F16 or F64",
                      tensors.file_of(name).string(), name, entry.type));
  }
}

std::unique_ptr<Mixtral> load_model(Backend& backend, const std::filesystem::path& directory,
                                    const Mixtral::Options& options) {
  const ModelFiles files = find_model_files(directory).value_or(ModelFiles{directory});
  const auto tensors = open_tensors(files);
  const ModelConfig config = read_model_config(files, *tensors);
  check_weights(config, *tensors);
  auto model = std::make_unique<Mixtral>(backend, config, options);
  load_weights(backend, *model, *tensors);
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
  for_each_tensor(config, [&](const TensorId& id) {
    tensors.emplace_back(tensor_name(id), tensor_shape(config, id.kind));
  });
  return tensors;
}

FileChecksum save_parameters(Backend& backend, const nn::ParameterSource& parameters,
                             const std::filesystem::path& path,
                             const std::vector<std::pair<std::string, Shape>>& zeros) {
  std::vector<PlannedTensor> plan;
  const auto saves = plan_saves(parameters, What::values, Dtype::f32, &plan);
  std::vector<float> nothing;
  for (const auto& [name, shape] : zeros) {
    plan.push_back({.name = name, .shape = shape, .dtype = Dtype::f32});
    nothing.resize(std::max(nothing.size(), static_cast<size_t>(shape.numel())));
  }
  Downloader download(backend, saves);
  return write_safetensors(path, std::move(plan), [&](const PlannedTensor& planned) {
    if (saves.contains(planned.name)) return download(planned);
    return Tensor(nothing.data(), planned.shape, Dtype::f32);
  });
}

void save_gradients(Backend& backend, const nn::ParameterSource& parameters,
                    const std::filesystem::path& path) {
  std::vector<PlannedTensor> plan;
  const auto saves = plan_saves(parameters, What::gradients, Dtype::f32, &plan);
  Downloader download(backend, saves);
  write_safetensors(path, std::move(plan),
                    [&](const PlannedTensor& planned) { return download(planned); });
}

}  // namespace mixtral
