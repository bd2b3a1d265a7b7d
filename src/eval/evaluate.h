#pragma once

#include <functional>
#include <vector>

#include "data/batches.h"
#include "model/loss.h"

namespace mixtral {

/// What a model makes of a corpus.
struct Evaluation {
  double cross_entropy = 0;  // nats, mean over labels
  double perplexity = 0;     // exp of it
  double aux = 0, z = 0;     // the routers' losses over the whole corpus, without coefficients
  double loss = 0;           // the whole objective
  int64_t tokens = 0;        // labels that were scored
  int64_t positions = 0;     // tokens that went through the model
  std::vector<std::vector<double>> load;  // [L][E]: assignments a token; each layer sums to k
  std::vector<double> entropy;            // [L]: mean entropy of the routing distribution, nats
};

/// Scores every row that `batches` (not endless) gives. The router's figures are means over all
/// tokens, so that they and the balancing loss do not depend on the batch size. `progress` is told
/// how many rows are done.
Evaluation evaluate(Context& ctx, const Mixtral& model, Batches& batches,
                    const Objective& objective, const std::function<void(int64_t)>& progress = {});

}  // namespace mixtral
