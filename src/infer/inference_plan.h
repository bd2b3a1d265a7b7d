#pragma once

#include <cstdint>

#include "model/memory_plan.h"

namespace mixtral {

/// Tokens of prompts that one step of an engine reads, at most, where nobody waits for the next
/// token of another sequence: of files of prompts.
constexpr int64_t kPatientStepTokens = 2048;

/// Tokens of prompts that a step of an engine reads, at most.
struct StepTokens {
  int64_t beside = 0;  // sequences that decode
  int64_t alone = 0;   // where none does: no fewer

  /// By the settings `chunk` and `lone_chunk` of an engine.
  static StepTokens of(const Backend& backend, int64_t chunk, int64_t lone_chunk);
};

/// The settings that decide how much memory generation takes: weights, the cache of `sequences`
/// sequences of `context` tokens, and the activations of `chunk` tokens of a prompt.
struct InferenceShape {
  ModelConfig config;
  Mixtral::Options options;
  int64_t sequences = 1, context = 2048;
  int64_t cache_tokens = 0;   // room of the cache for all sequences; 0: for all whole contexts
  int64_t chunk = 0;          // prompt tokens of a step; 0: what suits the device
  int64_t lone_chunk = 0;     // the same where no sequence decodes; 0: as chunk
  int64_t draft_tokens = 0;   // of a sequence in a step (SpeculationOptions::tokens)
  int64_t expert_memory = 0;  // of streamed experts, on the device (Options::stream_experts)
};
/// Runs one step of an engine on `planner` (backends/registry.h's planning backend, which computes
/// nothing and touches no memory) and counts what it allocates. Where `options.trainable`,
/// gradients are counted too.
MemoryPlan plan_inference(Backend& planner, const InferenceShape& shape);

/// Returns `shape` with the most prompt tokens in a step without decoding sequences that suit the
/// device and fit into memory_limit(memory), but no fewer than in any other step.
InferenceShape fit_lone_chunk(Backend& planner, InferenceShape shape,
                              const Backend::MemoryInfo& memory);

/// Throws Error with the plan's table, and the changes of settings under which it would fit, unless
/// the plan fits into memory_limit(memory).
void require_memory(Backend& planner, const InferenceShape& shape,
                    const Backend::MemoryInfo& memory);

/// Returns `shape` with as many sequences and as large a cache as fit into `limit` bytes. It has at
/// least one sequence and at most shape.sequences. `tokens`: what a sequence holds in the cache on
/// average while it is under way. Where shape.cache_tokens is given, it stays. Where not even one
/// sequence fits, the result does not fit either: see require_memory.
InferenceShape fill_memory(Backend& planner, InferenceShape shape, double tokens, int64_t limit);

}  // namespace mixtral
