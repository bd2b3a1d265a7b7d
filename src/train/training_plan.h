#pragma once

#include <cstdint>
#include <optional>

#include "model/adapter_file.h"
#include "model/loss.h"
#include "model/memory_plan.h"
#include "train/optimizer.h"
#include "train/preference.h"

namespace mixtral {

/// What is done with a batch, and so what is in memory for it.
enum class Pass {
  step,       // of training: gradients and update; with evaluations and checkpoints
  gradients,  // forward and backward alone
  losses,     // forward alone: nothing has gradients
  routes,     // the same up to the last block, with each token's choice of experts
};

/// The settings that decide how much memory training, or one pass over a batch, takes.
struct TrainingShape {
  ModelConfig config;
  Mixtral::Options options;
  Objective objective;
  OptimizerSettings optimizer;
  int64_t rows = 1;       // sequences of a micro-batch
  int64_t context = 0;    // tokens of each
  bool full_rows = true;  // batches come in which every sequence has them all
  Recompute recompute;
  /// What is trained instead of the model's own weights, which then have no gradients.
  std::optional<AdapterFile> adapter;
  /// Preference training: rows are pairs, of two sequences each.
  std::optional<PreferenceSettings> preference;
  bool reference_model = false;  // a second model in memory, as the reference of preferences
  Pass pass = Pass::step;
};

/// Runs one step, and one evaluation batch, or the pass that the shape names, on `planner`
/// (backends/registry.h's planning backend, which computes nothing and touches no memory), and
/// counts what they allocate.
MemoryPlan plan_training(Backend& planner, const TrainingShape& shape);

/// Throws Error with the plan's table, and the changes of flags under which it would fit, unless
/// the plan fits into memory_limit(memory).
void require_memory(Backend& planner, const TrainingShape& shape, const MemoryPlan& plan,
                    const Backend::MemoryInfo& memory);

}  // namespace mixtral
