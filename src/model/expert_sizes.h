#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <vector>

#include "model/mixtral.h"
#include "nn/streamed_experts.h"

namespace mixtral {

/// What the experts of a model take that was made with Options::stream_experts.
struct ExpertSizes {
  int64_t layers = 0, experts = 0;  // L, E
  // Bytes of an expert's place in memory, the largest of all layers.
  std::array<int64_t, nn::kExpertProducts> product_bytes = {};

  int64_t expert_bytes() const { return product_bytes[0] + product_bytes[1]; }
  int64_t all_bytes() const { return layers * experts * expert_bytes(); }
  /// The fewest that are of use: one expert of each layer.
  int64_t least_bytes() const { return layers * expert_bytes(); }
  /// What is taken of so much memory: whole experts, and no more than all.
  int64_t used_bytes(int64_t memory) const;
};
ExpertSizes expert_sizes(Mixtral& model);

/// Calls `visit` with every layer's streamed products, layer by layer.
void for_each_streamed(Mixtral& model, const std::function<void(nn::StreamedExperts&)>& visit);

/// One expert's weights of each of a product's parameters, cut by `take(Shape, Dtype) -> Tensor`.
std::vector<ops::Weight> cut_expert(const nn::StreamedExperts& experts,
                                    const std::function<Tensor(Shape, Dtype)>& take);

}  // namespace mixtral
