#include "model/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

namespace mixtral {
namespace {

using Part = nn::Parameter::Part;

/// A file's tensor and where it goes.
struct Load {
  std::string name;
  Tensor destination;
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

std::map<std::string, std::pair<Tensor, Shape>> named_parts(const nn::ParameterSource& parameters,
                                                            bool gradients,
                                                            std::vector<PlannedTensor>* plan,
                                                            Dtype dtype) {
  std::map<std::string, std::pair<Tensor, Shape>> sources;
  parameters([&](nn::Parameter& p) {
    if (gradients && !p.grad) return;
    for (const Part& part : p.parts) {
      plan->push_back({.name = part.name, .shape = part.shape, .dtype = dtype});
      sources[part.name] = {gradients ? p.grad_of(part) : p.value_of(part), part.shape};
    }
  });
  return sources;
}

TensorSource downloader(Backend& backend,
                        const std::map<std::string, std::pair<Tensor, Shape>>& sources,
                        Staging& staging) {
  return [&](const PlannedTensor& planned) {
    const Tensor device = sources.at(planned.name).first;
    const Tensor host = staging.tensor(planned.shape, device.dtype());
    backend.download(device, host);
    return host;
  };
}

}  // namespace

void load_weights(Backend& backend, Mixtral& model, const ModelTensors& tensors) {
  std::vector<Load> loads;
  std::set<std::string, std::less<>> used;
  model.for_each_parameter([&](nn::Parameter& p) {
    const bool packed = !p.packed_name.empty() && tensors.find(p.packed_name);
    const Part whole{.name = p.packed_name, .offset = 0, .shape = p.shape};
    const std::vector<Part> only{whole};
    for (const Part& part : packed ? only : p.parts) {
      if (!tensors.find(part.name))
        throw Error(
            fmt::format("{}: tensor {} is missing; config.json describes a model that has it",
                        tensors.path().string(), part.name));
      check_shape(tensors, part.name, part.shape);
      loads.push_back({part.name, p.value_of(part)});
      used.insert(part.name);
    }
  });
  for (const std::string& name : tensors.names()) {
    if (!used.contains(name) && !is_known_extra(name, model.config().tie_embeddings))
      throw Error(fmt::format("{}: tensor {} has no place in the model that config.json describes",
                              tensors.file_of(name).path().string(), name));
  }
  tensors.refuse_non_finite();
  Staging staging;
  for (const Load& load : loads) {
    const Tensor host = staging.tensor(load.destination.shape(), load.destination.dtype());
    tensors.read_into(load.name, host);
    backend.upload(host, load.destination);
    backend.synchronize();  // the staging area is used again
  }
}

std::unique_ptr<Mixtral> load_model(Backend& backend, const std::filesystem::path& directory,
                                    const Mixtral::Options& options) {
  const ModelConfig config = ModelConfig::load(directory);
  const ModelTensors tensors(directory);
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
  const auto sources = named_parts(model.parameters(), false, &plan, dtype);
  Staging staging;
  return write_model_tensors(directory, plan, downloader(backend, sources, staging));
}

void save_gradients(Backend& backend, const nn::ParameterSource& parameters,
                    const std::filesystem::path& path) {
  std::vector<PlannedTensor> plan;
  const auto sources = named_parts(parameters, true, &plan, Dtype::f32);
  Staging staging;
  write_safetensors(path, std::move(plan), downloader(backend, sources, staging));
}

}  // namespace mixtral
