#include "model/adapter_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "io/json.h"

namespace mixtral {
namespace {

bool all_zero(const float* values, int64_t count) {
  return std::all_of(values, values + count, [](float value) { return value == 0; });
}

}  // namespace

std::vector<float> transposed(const std::vector<float>& values, int64_t rows, int64_t columns) {
  std::vector<float> result(values.size());
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j)
      result[static_cast<size_t>(j * rows + i)] = values[static_cast<size_t>(i * columns + j)];
  return result;
}

bool take_prefix(std::string_view& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.remove_prefix(prefix.size());
  return true;
}

std::optional<int64_t> take_number(std::string_view& text) {
  size_t digits = 0;
  int64_t value = 0;
  while (digits < text.size() && digits < 9 && text[digits] >= '0' && text[digits] <= '9')
    value = value * 10 + (text[digits++] - '0');
  if (digits == 0) return std::nullopt;
  text.remove_prefix(digits);
  return value;
}

std::optional<AdapterPlace> place_of_module(std::string_view name) {
  AdapterPlace place;
  if (name == "lm_head") {
    place.target = "lm_head";
    return place;
  }
  if (!take_prefix(name, "model.layers.")) return std::nullopt;
  const auto layer = take_number(name);
  if (!layer || !take_prefix(name, ".")) return std::nullopt;
  place.layer = *layer;
  if (name == "mlp.gate") name = "block_sparse_moe.gate";
  for (const AdapterTarget& target : adapter_targets()) {
    if (!target.per_layer || target.fused) continue;
    if (!target.per_expert) {
      if (name != target.module) continue;
      place.target = target.name;
      return place;
    }
    std::string_view rest = name;
    if (!take_prefix(rest, "block_sparse_moe.experts.")) continue;
    const auto expert = take_number(rest);
    if (!expert || rest != "." + target.name) continue;
    place.target = target.name;
    place.expert = *expert;
    return place;
  }
  return std::nullopt;
}

void AdapterReader::wrong_shape(const TensorEntry& entry, const std::string& expected) const {
  throw Error(fmt::format("{}: tensor {} has shape {}, but for this model it must be {}",
                          tensors_.path().string(), printable(entry.name), entry.shape_text(),
                          expected));
}

void AdapterReader::no_place(const TensorEntry& entry) const {
  throw Error(
      fmt::format("{}: tensor {} matches nothing in this model; is the adapter for another one?",
                  tensors_.path().string(), printable(entry.name)));
}

std::vector<int64_t> AdapterReader::dims_of(const TensorEntry& entry, size_t rank) const {
  if (entry.dims.size() != rank) wrong_shape(entry, fmt::format("of {} dimensions", rank));
  return entry.dims;
}

TargetShape AdapterReader::shape_at(const TensorEntry& entry, const AdapterPlace& place) const {
  if (place.layer >= config_.num_layers || place.expert >= config_.num_experts)
    throw Error(fmt::format(
        "{}: tensor {} belongs to a larger model than this one of {} layers and {} experts",
        tensors_.path().string(), printable(entry.name), config_.num_layers, config_.num_experts));
  return target_shape(config_, place.target);
}

std::vector<float> AdapterReader::read(const TensorEntry& entry) const {
  std::vector<float> values(static_cast<size_t>(entry.numel()));
  Shape shape;
  if (entry.dims.size() == 2) shape = {entry.dims[0], entry.dims[1]};
  if (entry.dims.size() == 3) shape = {entry.dims[0], entry.dims[1], entry.dims[2]};
  tensors_.read_into(entry.name, Tensor(values.data(), shape, Dtype::f32));
  for (const float value : values) {
    if (!std::isfinite(value))
      throw Error(fmt::format("{}: tensor {} holds a value that is not finite",
                              tensors_.path().string(), printable(entry.name)));
  }
  return values;
}

void AdapterReader::add(const TensorEntry& entry, const AdapterPlace& place, AdapterMatrix matrix,
                        const AdapterScaling& scaling) {
  if (scaling.rank != 0 && matrix.rank != scaling.rank)
    throw Error(fmt::format(
        "{}: tensor {} has rank {}, but adapter_config.json says {}; the two belong to different "
        "adapters",
        tensors_.path().string(), printable(entry.name), matrix.rank, scaling.rank));
  if (matrix.rank > kMostAdapterRank)
    throw Error(fmt::format("{}: tensor {} has rank {}; at most {} is accepted",
                            tensors_.path().string(), printable(entry.name), matrix.rank,
                            kMostAdapterRank));
  AdapterModule& module = module_for(entry, place, matrix.rank, scaling);
  std::vector<float>& all = place.matrix == 'A' ? module.a : module.b;
  if (place.expert < 0)
    all = std::move(matrix.values);
  else
    std::ranges::copy(matrix.values,
                      all.begin() + place.expert * static_cast<int64_t>(matrix.values.size()));
  note(entry, place);
}

AdapterModule& AdapterReader::module_for(const TensorEntry& entry, const AdapterPlace& place,
                                         int64_t rank, const AdapterScaling& scaling) {
  const TargetShape shape = target_shape(config_, place.target);
  const auto& targets = adapter_targets();
  const auto order =
      std::ranges::find_if(targets, [&](const auto& t) { return t.name == place.target; });
  AdapterModule& module = modules_[{place.layer, order - targets.begin()}];
  if (module.target.empty()) {
    module.layer = place.layer;
    module.target = place.target;
    module.rank = rank;
    module.alpha = scaling.alpha;
    module.scale = adapter_scale(scaling.alpha, rank, scaling.rslora);
    module.a.assign(static_cast<size_t>(shape.groups * rank * shape.inputs), 0);
    module.b.assign(static_cast<size_t>(shape.groups * shape.rows * rank), 0);
  }
  if (module.rank != rank || module.alpha != scaling.alpha)
    throw Error(fmt::format(
        "{}: tensor {} has rank {} and alpha {}, but the same module has {} and {} elsewhere in "
        "the layer",
        tensors_.path().string(), printable(entry.name), rank, scaling.alpha, module.rank,
        module.alpha));
  if (!adapter_target(place.target).per_expert) return module;
  const int64_t first = std::max<int64_t>(place.expert, 0);
  const int64_t last = place.expert < 0 ? shape.groups - 1 : place.expert;
  for (int64_t e = first; e <= last; ++e)
    if (std::ranges::find(module.experts, e) == module.experts.end()) module.experts.push_back(e);
  return module;
}

void AdapterReader::note(const TensorEntry& entry, const AdapterPlace& place) {
  int& seen = halves_[{place.layer, place.target, place.expert}];
  const int half = place.matrix == 'A' ? 1 : 2;
  if (seen & half)
    throw Error(fmt::format("{}: tensor {} stands there twice, under two names",
                            tensors_.path().string(), printable(entry.name)));
  seen |= half;
}

std::vector<int64_t> AdapterReader::experts_in_use(const AdapterModule& module) const {
  const TargetShape shape = target_shape(config_, module.target);
  const int64_t a = module.rank * shape.inputs, b = shape.rows * module.rank;
  std::vector<int64_t> experts = module.experts;
  std::erase_if(experts, [&](int64_t e) {
    return all_zero(module.a.data() + e * a, a) && all_zero(module.b.data() + e * b, b);
  });
  return experts;
}

std::vector<AdapterModule> AdapterReader::finish() {
  for (const auto& [key, seen] : halves_) {
    const auto& [layer, target, expert] = key;
    if (seen != 3)
      throw Error(fmt::format("{}: layer {} {}{} has lora_{} but no lora_{}",
                              tensors_.path().string(), layer, target,
                              expert >= 0 ? fmt::format(" of expert {}", expert) : "",
                              seen == 1 ? 'A' : 'B', seen == 1 ? 'B' : 'A'));
  }
  if (modules_.empty())
    throw Error(fmt::format("{}: holds no LoRA tensors", tensors_.path().string()));
  std::vector<AdapterModule> result;
  for (auto& [key, module] : modules_) {
    std::ranges::sort(module.experts);
    if (adapter_target(module.target).per_expert) {
      std::vector<int64_t> experts = experts_in_use(module);
      if (experts.empty()) continue;
      module.experts = std::move(experts);
    }
    result.push_back(std::move(module));
  }
  if (!result.empty()) return result;
  for (auto& [key, module] : modules_) result.push_back(std::move(module));  // all are zero
  return result;
}

}  // namespace mixtral
