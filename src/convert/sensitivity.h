#pragma once

#include <map>

#include "base/threads.h"
#include "convert/layer_inputs.h"
#include "convert/stored_type.h"

namespace mixtral {

/// What rounding to the nearest of few bits would do to a model on a text, matrix by matrix.
struct Sensitivity {
  /// The relative squared error of the residual stream after a layer when one of its matrices is
  /// rounded (for the head: of the logits). It is the relative error of the matrix's products times
  /// the branch's share of the stream. This is an estimate: the rest of the branch is taken to pass
  /// errors on unchanged.
  std::map<TensorId, double> noise;
  /// Tokens of the text that chose each expert, by its w1.
  std::map<TensorId, int64_t> tokens;

  double total() const;
};

/// Bits of a number to which a survey rounds.
inline constexpr int kSurveyBits = 4;

/// Rounds each matrix that a text reaches to groups of kSurveyBits bits, on its own. One forward
/// pass from the model's files, and as many products again.
Sensitivity survey(Backend& backend, ThreadPool& threads, const TensorSource& source,
                   const ModelConfig& config, const HostBatch& text);

}  // namespace mixtral
