#pragma once

#include <cstdint>
#include <vector>

#include "infer/request.h"
#include "tensor/tensor.h"

namespace mixtral {

/// The log-probability of token `id`, and of the `best` most probable tokens in order (ties to the
/// lower id), by one row of logits [V] in host memory (f32 or f64). Where `id` is the most probable
/// token, both say the same number to the bit.
struct TokenScores {
  double log_probability = 0;
  std::vector<TokenProbability> best;
};
TokenScores score_token(const Tensor& logits, int32_t id, int64_t best);

}  // namespace mixtral
