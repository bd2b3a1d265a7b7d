#pragma once

#include <map>

#include "base/threads.h"
#include "convert/layer_inputs.h"
#include "convert/stored_type.h"

namespace mixtral {

/// What rounding to the nearest of few bits would do to a model on a text, matrix by matrix.
struct Sensitivity {
  /// The squared error that rounding a matrix alone brings into the residual stream behind its
  /// layer (of the head: into the logits), as a share of what is there: the relative error of the
  /// matrix's products times the size of the branch that they are in. An estimate: errors pass the
  /// rest of the branch as they are.
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
