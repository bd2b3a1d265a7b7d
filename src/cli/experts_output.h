#pragma once

#include <optional>
#include <string>

#include "cli/conversion_output.h"
#include "convert/sample_text.h"
#include "surgery/expert_statistics.h"
#include "surgery/surgery.h"

namespace mixtral {

/// What every command of `mixtral experts` is told.
struct ExpertsOptions : TargetOptions {
  std::string model, type, data;
  int64_t tokens = 8192, context = 512;

  /// Adds the flags, those of TargetOptions among them.
  void add_to(cli::App& command);
  /// What is to be written. Throws UsageError for a type that the target has not.
  ConvertOptions target() const;
  /// How much of a text is looked at.
  SampleOptions sample() const {
    return {.tokens = tokens, .context = context, .threads = common.threads};
  }
};

/// Finds a model that is to be read, and refuses a target that it must not become.
ModelSource open_expert_source(const ExpertsOptions& o, const ModelSource::Names& names);

/// Writes the model, measures it on --data where that is given, and prints what was done.
/// `statistics` may be null.
void run_surgery(const ExpertsOptions& o, const ModelEdit& edit,
                 const ExpertStatistics* statistics = nullptr);

}  // namespace mixtral
