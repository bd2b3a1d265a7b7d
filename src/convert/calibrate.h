#pragma once

#include <filesystem>

#include "convert/importance.h"
#include "model/batch.h"
#include "open/model_source.h"
#include "ops/backend.h"

namespace mixtral {

/// How much of a text is looked at.
struct SampleOptions {
  int64_t tokens = 8192;  // at most
  int64_t context = 512;  // of a sequence
  int threads = 0;
};

/// Sequences from a file of records or text (data/corpus.h), drawn from all over it, the same each
/// time, with labels. Throws Error where there is no text to score.
HostBatch sample_text(const ModelSource& source, const std::filesystem::path& file,
                      const SampleOptions& options);

/// What a calibration found beside the importance of columns.
struct Calibration {
  Importance importance;
  int64_t tokens = 0;
  /// Experts, of all layers, that so few tokens chose that their layer's mean counts for more than
  /// their own figures.
  int64_t rare_experts = 0;
};

/// The mean square of what each matrix is multiplied by, over a batch: of an expert's, over the
/// tokens that choose it. Its figures and the layer's mean over all experts are joined, as if 64
/// tokens had been seen of the latter, so that a rarely chosen expert is close to its layer.
Calibration calibrate(Backend& backend, const ModelSource& source, const HostBatch& batch);

}  // namespace mixtral
