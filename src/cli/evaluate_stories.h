#pragma once

#include "cli/scoring.h"

namespace mixtral {

/// How `mixtral evaluate --stories` has stories told.
struct StoryScoringOptions {
  int64_t stories = 0;  // how many
  int64_t max_tokens = 200, show = 0;
  double temperature = 0.6;
};

/// Lets a model tell stories of the built-in worlds and prints how many of the names in them the
/// story had introduced. Throws UsageError where the model has no tokenizer.
void run_story_scoring(const ScoringOptions& options, const StoryScoringOptions& how);

}  // namespace mixtral
