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
inline constexpr double kBeta2 = 0.99;  // small batches: second moments over a hundred steps
inline constexpr double kAdamEps = 1e-8;
inline constexpr double kWeightDecay = 0.1;
inline constexpr double kGradClip = 1;
inline constexpr double kMinLrShare = 0.1;  // of the learning rate
inline constexpr double kDecayShare = 0.2;  // of the steps, in wsd

/// The learning rate for training from scratch: 1.2e-3 suits a width of 128; larger models take
/// smaller ones, with the square root of the width.
inline double learning_rate(const ModelConfig& config) {
  return 1.2e-3 * std::sqrt(128.0 / static_cast<double>(std::max<int64_t>(config.hidden_size, 64)));
}

/// The deviation of starting weights: 0.04 at a width of 128, falling with the square root of the
/// width to the usual 0.02 and no further.
inline double initializer_range(const ModelConfig& config) {
  const double scaled = 0.04 * std::sqrt(128.0 / static_cast<double>(config.hidden_size));
  return std::clamp(scaled, 0.02, 0.06);
}

/// How a model from scratch starts: the residual outputs like everything else.
inline nn::Initialisation initialisation(const ModelConfig& config, uint64_t seed) {
  return {.seed = seed,
          .deviation = config.initializer_range,
          .residual_deviation = config.initializer_range,
          .embedding_deviation = config.initializer_range};
}

/// Steps of warm-up.
inline int64_t warmup(int64_t iterations) { return std::min<int64_t>(100, iterations / 10); }

/// Steps between evaluations, and between checkpoints: about ten in a run.
inline int64_t eval_every(int64_t iterations) {
  return std::clamp<int64_t>(iterations / 10, 50, 1000);
}

}  // namespace mixtral::defaults
