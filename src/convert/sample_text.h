#pragma once

#include <filesystem>

#include "model/batch.h"
#include "open/model_source.h"

namespace mixtral {

/// How much of a text is looked at.
struct SampleOptions {
  int64_t tokens = 8192;  // at most
  int64_t context = 512;  // of a sequence
  int threads = 0;
};

/// Sequences from a file of records or text (data/corpus.h), drawn from all over it, the same each
/// time, with labels: whole records, and windows of those that are longer. Throws Error where there
/// is no text to score.
HostBatch sample_text(const ModelSource& source, const std::filesystem::path& file,
                      const SampleOptions& options);

}  // namespace mixtral
