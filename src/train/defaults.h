#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "model/config.h"
#include "nn/parameter.h"

/// What training uses where nobody says otherwise: the one place for choices that were tuned.
namespace mixtral::defaults {

inline constexpr int64_t kIterations = 2000;
inline constexpr int64_t kBatchRows = 16;
inline constexpr int64_t kContext = 256;  // at most; the model's positions if they are fewer

inline constexpr double kBeta1 = 0.9;
inline constexpr double kBeta2 = 0.995;  // small batches: second moments over two hundred steps
inline constexpr double kAdamEps = 1e-8;
inline constexpr double kWeightDecay = 0.1;
inline constexpr double kGradClip = 1;
inline constexpr double kMinLrShare = 0.1;  // of the learning rate, in cosine; wsd ends at 0
inline constexpr double kDecayShare = 0.4;  // of the steps, in wsd

// What follows was measured at widths of 128 and 256 on 1.5 to 7 million tokens
// (docs/performance.md, "Learning"); beyond, it falls towards what large models use.

/// The learning rate for training from scratch.
inline double learning_rate(const ModelConfig& config) {
  return 1.2e-3 * std::min(1.0, std::sqrt(256.0 / static_cast<double>(config.hidden_size)));
}

/// The deviation of starting weights.
inline double initializer_range(const ModelConfig& config) {
  return std::clamp(0.05 * std::sqrt(256.0 / static_cast<double>(config.hidden_size)), 0.02, 0.05);
}

/// The deviation of a starting embedding: four times that of other weights, so that what the blocks
/// add does not drown the token at once. A tied one is the output matrix too, and starts like it.
inline double embedding_deviation(const ModelConfig& config) {
  return config.tie_embeddings ? config.initializer_range : 4 * config.initializer_range;
}

/// How a model from scratch starts: the residual outputs like everything else.
inline nn::Initialisation initialisation(const ModelConfig& config, uint64_t seed) {
  return {.seed = seed,
          .deviation = config.initializer_range,
          .residual_deviation = config.initializer_range,
          .embedding_deviation = embedding_deviation(config)};
}

/// Steps of warm-up.
inline int64_t warmup(int64_t iterations) { return std::min<int64_t>(100, iterations / 10); }

/// Steps between evaluations, and between checkpoints: about ten in a run.
inline int64_t eval_every(int64_t iterations) {
  return std::clamp<int64_t>(iterations / 10, 50, 1000);
}

}  // namespace mixtral::defaults
