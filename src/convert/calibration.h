#pragma once

#include <map>

#include "convert/compensated_rounding.h"
#include "convert/layer_inputs.h"

namespace mixtral {

/// A text that a model is rounded for, and what rounding did to each of its matrices.
class Calibration {
 public:
  /// All must outlive this. `backend` computes in ordinary memory.
  Calibration(Backend& backend, const TensorSource& source, const ModelConfig& config,
              const HostBatch& text);

  static bool has(const TensorId& id) { return LayerInputs::has(id.kind); }
  /// round_compensated() for the inputs that the text gives the matrix.
  void round(ThreadPool& threads, const TensorId& id, const Tensor& values,
             const RowRounders& rounders, const Tensor& packed);

  int64_t tokens() const { return inputs_.tokens(); }
  /// Of each matrix that was rounded, as it was rounded last.
  const std::map<TensorId, RoundingLoss>& losses() const { return losses_; }
  /// Experts, of all layers, that fewer tokens chose than count beside their own.
  int64_t rare_experts() const;

 private:
  LayerInputs inputs_;
  std::map<TensorId, RoundingLoss> losses_;
  std::map<TensorId, int64_t> chosen_;  // tokens that chose an expert, by its w1
};

}  // namespace mixtral
