#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "infer/inference_plan.h"
#include "model/expert_cache.h"
#include "open/model_source.h"
#include "open/open_model.h"

namespace mixtral {

/// How a model is held that may be larger than the device's memory.
struct ExpertStreaming {
  int64_t memory = 0;  // for experts, as InferenceShape::expert_memory
  ExpertSizes sizes;
  int64_t whole = 0;     // bytes of the plan with all weights in the device's memory
  bool in_host = false;  // all experts stand in the host's memory (HostExperts), not in files alone
};

/// What a model's experts come from.
struct ExpertSource {
  const ModelSource& model;
  bool drawn = false;  // they are drawn, not read: for a GPU
  /// Bytes that are free in the host's memory; absent: this machine's.
  std::optional<int64_t> host_memory = {};
};

/// How the model is held where `shape`, which has all weights in memory, does not fit `memory` but
/// would with a part of the experts; nothing where it fits, or where nothing makes it. On a CPU the
/// others are read from files; on a GPU all are in the host's memory, too, which must have room.
std::optional<ExpertStreaming> find_streaming(const Backend& backend, const ExpertSource& source,
                                              const InferenceShape& shape,
                                              const Backend::MemoryInfo& memory);

/// Whether experts are read or copied while they are needed, and how much of the device's memory is
/// theirs: where `asked` says so, or else as find_streaming() finds. Nothing where all weights go
/// into memory. Throws Error where neither fits, with the plan, and for `asked` where the device,
/// the form of the files or the host's memory does not go with it.
std::optional<ExpertStreaming> plan_streaming(const Backend& backend, const ExpertSource& source,
                                              const InferenceShape& shape,
                                              const Backend::MemoryInfo& memory,
                                              std::optional<int64_t> asked);

/// A model's experts that are not all in the device's memory, and what they come from.
struct OpenedExperts {
  std::unique_ptr<HostExperts> host;   // null: files
  std::unique_ptr<ExpertCache> cache;  // goes before the model
};
/// Takes their memory and, where they stand in the host's, reads them, or draws them from the seed.
/// The model must be there.
OpenedExperts open_experts(Backend& backend, Mixtral& model, const ExpertStreaming& streaming,
                           const ModelSource& source, const WeightsFrom& from);

/// "experts are read from the disk as they are needed: ..."
std::string describe(const ExpertStreaming& streaming);

/// What was read of experts that are not all in memory, while `tokens` were computed: "experts: 80%
/// of 640 uses found in memory, ...".
std::string describe(const ExpertCache::Figures& figures, double tokens);

}  // namespace mixtral
