#include "model/stored_formats.h"

#include <vector>

#include "model/tensor_names.h"

namespace mixtral {
namespace {

std::string format_name(const TensorSource& tensors, const ModelConfig& config,
                        const TensorId& id) {
  const auto place = find_place(tensors, config, id);
  if (!place || place->naming.transposed) return {};
  return tensors.at(place->name).format;
}

}  // namespace

ParameterFormats stored_formats(const TensorSource& tensors, const ModelConfig& config,
                                const std::function<bool(ops::WeightFormat)>& allowed) {
  ParameterFormats formats;
  const auto add = [&](const std::vector<TensorId>& parts) {
    const std::string first = format_name(tensors, config, parts.front());
    const auto format = ops::find_weight_format(first);
    if (!format || format->dense() || !allowed(*format)) return;
    for (const TensorId& id : parts)
      if (format_name(tensors, config, id) != first) return;
    formats.emplace(tensor_name(parts.front()), *format);
  };
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    for (const TensorKind kind :
         {TensorKind::query, TensorKind::key, TensorKind::value, TensorKind::attention_output})
      add({{kind, layer}});
    for (const TensorKind kind : {TensorKind::w1, TensorKind::w2, TensorKind::w3}) {
      std::vector<TensorId> experts;
      experts.reserve(static_cast<size_t>(config.num_experts));
      for (int64_t expert = 0; expert < config.num_experts; ++expert)
        experts.push_back({kind, layer, expert});
      add(experts);
    }
  }
  if (!config.tie_embeddings) add({{TensorKind::head}});
  return formats;
}

}  // namespace mixtral
