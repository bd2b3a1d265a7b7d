#include "convert/output_tensor.h"

#include <map>

namespace mixtral {
namespace {

std::string filled_in(const TensorNaming& naming, const TensorId& id) {
  const TensorNaming rows[] = {naming};
  return tensor_name({.name = "", .rows = rows}, id);
}

int64_t neighbours(const TensorNaming& naming, const ModelConfig& config) {
  if (naming.row_order != TensorNaming::RowOrder::interleaved) return 0;
  return naming.kind == TensorKind::query ? config.num_heads : config.num_kv_heads;
}

}  // namespace

std::vector<int64_t> OutputTensor::dims() const {
  std::vector<int64_t> dims;
  if (stacked) dims.push_back(count());
  for (int i = 0; i < part_shape.rank(); ++i) dims.push_back(part_shape[i]);
  return dims;
}

std::vector<OutputTensor> output_tensors(const ModelConfig& config, ModelFormat target) {
  std::vector<OutputTensor> outputs;
  std::map<std::string, size_t> places;
  for_each_tensor(config, [&](const TensorId& id) {
    const TensorNaming& naming = naming_in(target, id.kind);
    CHECK(!naming.transposed && naming.parts == 1, "no target is packed so");
    const std::string name = filled_in(naming, id);
    const auto [place, is_new] = places.try_emplace(name, outputs.size());
    if (is_new)
      outputs.push_back({.name = name,
                         .parts = {},
                         .stacked = naming.all_experts,
                         .heads = neighbours(naming, config),
                         .part_shape = tensor_shape(config, id.kind),
                         .type = {}});
    outputs[place->second].parts.push_back(id);
  });
  return outputs;
}

}  // namespace mixtral
