#pragma once

#include <cstdint>
#include <vector>

#include "model/batch.h"
#include "open/model_source.h"
#include "ops/backend.h"

namespace mixtral {

/// What the experts of one layer did with a text.
struct LayerStatistics {
  std::vector<int64_t> load;  // [E]: tokens that chose the expert
  /// [E]: the mean, over these tokens, of the router's weight times the norm of the expert's
  /// output; 0 where there are none (Lasby et al. 2025, "REAP the Experts", arXiv 2510.13999).
  std::vector<double> saliency;
  /// [E] of [D]: the mean output for tokens of the layer, whichever expert they chose. Empty where
  /// it was not asked for.
  std::vector<std::vector<double>> output;
};

struct ExpertStatistics {
  int64_t tokens = 0;
  std::vector<LayerStatistics> layers;
};

struct StatisticsOptions {
  /// So many tokens, spread over the text, go through every expert, for their mean outputs. 0: none
  /// do.
  int64_t output_tokens = 0;
};

/// Runs a model over a text, matrix by matrix (StreamedModel). `backend` computes in ordinary
/// memory.
ExpertStatistics gather_statistics(Backend& backend, const ModelSource& source,
                                   const HostBatch& text, const StatisticsOptions& options);

/// What the routers of a model see: for each layer the mean over the sequences of a text of each
/// one's mean over its tokens, [L] of [D].
std::vector<std::vector<double>> mean_router_inputs(Backend& backend, const ModelSource& source,
                                                    const HostBatch& text);

/// The records of a file as sequences of their own (a plain text is cut into windows), up to
/// `tokens` in all and `context` in each, without labels. Throws Error where there are none.
HostBatch read_prompts(const ModelSource& source, const std::filesystem::path& file, int64_t tokens,
                       int64_t context, int threads);

}  // namespace mixtral
