#pragma once

#include "convert/compare_logits.h"
#include "model/batch.h"

namespace mixtral {

/// What rounding did to a model, on a text.
struct Quality {
  int64_t tokens = 0;            // that were scored
  double before = 0, after = 0;  // perplexity
  double divergence = 0;         // mean KL(before || after) of the next token, nats
  double top_agreement = 0;      // share of places with the same most likely token
  /// Mean squared difference of hidden states after the last layer, as a share of their mean
  /// square.
  double hidden_error = 0;

  double increase() const { return after / before - 1; }
};

/// Runs both models over a batch with labels, layer by layer.
Quality measure_quality(Backend& backend, const ModelWeights& before, const ModelWeights& after,
                        const HostBatch& batch);

}  // namespace mixtral
