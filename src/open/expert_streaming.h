#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "infer/inference_plan.h"
#include "model/expert_cache.h"
#include "open/model_source.h"

namespace mixtral {

/// How a model is held that may be larger than the memory.
struct ExpertStreaming {
  int64_t memory = 0;  // for experts, as InferenceShape::expert_memory
  ExpertSizes sizes;
  int64_t whole = 0;  // bytes of the plan with all weights in memory
};

/// How the model is held where `shape`, which has all weights in memory, does not fit `memory` but
/// would with a part of the experts; nothing where it fits, or where nothing makes it.
std::optional<ExpertStreaming> find_streaming(const Backend& backend, const ModelSource& source,
                                              const InferenceShape& shape,
                                              const Backend::MemoryInfo& memory);

/// Whether experts are read from the model's files while they are needed, and how much memory is
/// theirs: where `asked` says so, or else as find_streaming() finds. Nothing where all weights go
/// into memory. Throws Error where neither fits, with the plan, and for `asked` where the device,
/// or the form of the files, does not go with it.
std::optional<ExpertStreaming> plan_streaming(const Backend& backend, const ModelSource& source,
                                              const InferenceShape& shape,
                                              const Backend::MemoryInfo& memory,
                                              std::optional<int64_t> asked);

/// "experts are read from the disk as they are needed: ..."
std::string describe(const ExpertStreaming& streaming);

/// What was read of experts that are not all in memory, while `tokens` were computed: "experts: 80%
/// of 640 uses found in memory, ...".
std::string describe(const ExpertCache::Figures& figures, double tokens);

}  // namespace mixtral
