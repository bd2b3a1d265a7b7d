#include "model/expert_sizes.h"

#include <algorithm>

#include "tensor/cutter.h"

namespace mixtral {

int64_t ExpertSizes::used_bytes(int64_t memory) const {
  return std::min(memory / expert_bytes(), layers * experts) * expert_bytes();
}

ExpertSizes expert_sizes(Mixtral& model) {
  ExpertSizes sizes{.layers = model.config().num_layers, .experts = model.config().num_experts};
  for_each_streamed(model, [&](nn::StreamedExperts& experts) {
    Cutter cutter;
    cut_expert(experts, [&](Shape shape, Dtype dtype) { return cutter.take(shape, dtype); });
    int64_t& bytes = sizes.product_bytes[static_cast<size_t>(experts.product())];
    bytes = std::max(bytes, cutter.size());
  });
  return sizes;
}

void for_each_streamed(Mixtral& model, const std::function<void(nn::StreamedExperts&)>& visit) {
  for (Block& block : model.blocks())
    for (auto* projection : {&block.experts.gate_up, &block.experts.down}) {
      auto* const streamed = dynamic_cast<nn::StreamedExperts*>(projection->get());
      CHECK(streamed != nullptr, "a model whose experts are not streamed");
      visit(*streamed);
    }
}

std::vector<ops::Weight> cut_expert(const nn::StreamedExperts& experts,
                                    const std::function<Tensor(Shape, Dtype)>& take) {
  std::vector<ops::Weight> weights;
  for (const nn::Parameter& p : experts.parameters())
    weights.push_back(ops::make_weight({1, p.shape[1], p.shape[2]}, *p.format, take));
  return weights;
}

}  // namespace mixtral
