#pragma once

#include "convert/receipt.h"
#include "model/tensor_names.h"
#include "ops/backend.h"

namespace mixtral {

/// A model's weights and what they are weights of.
struct ModelWeights {
  const TensorSource& tensors;
  const ModelConfig& config;
};

/// The fixed prompt: 16 tokens over the whole vocabulary (fewer where the context is shorter).
std::vector<int32_t> probe_tokens(const ModelConfig& config);

/// Runs both models over the fixed prompt, layer by layer.
LogitComparison compare_logits(Backend& backend, const ModelWeights& source,
                               const ModelWeights& target);

/// Compares a target with what a receipt says of its source's logits.
LogitComparison compare_logits(Backend& backend, const LogitComparison& noted,
                               const ModelWeights& target);

}  // namespace mixtral
