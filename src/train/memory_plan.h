#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/adapter_file.h"
#include "model/loss.h"
#include "train/optimizer.h"
#include "train/preference.h"

namespace mixtral {

/// What a run needs of a device's memory, item by item.
struct MemoryPlan {
  struct Item {
    std::string name;  // "weights"
    int64_t bytes = 0;
  };
  std::vector<Item> items;

  int64_t total() const;
  int64_t bytes_of(std::string_view name) const;  // 0 when there is no such item
  int64_t arena() const;                          // of a batch's activations, logits included
  /// Lines of names and sizes, the total last.
  std::string table() const;
};

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

/// The same for generation: weights, the cache of `sequences` sequences of `context` tokens, and
/// the activations of a prompt's chunk of `chunk` tokens.
struct InferenceShape {
  ModelConfig config;
  Mixtral::Options options;
  int64_t sequences = 1, context = 2048, chunk = 256;
};
/// Where `options.trainable`, gradients are counted too.
MemoryPlan plan_inference(Backend& planner, const InferenceShape& shape);

/// What a plan may come to: what is available, and what was in use when the device was opened,
/// which plans count.
inline int64_t memory_limit(const Backend::MemoryInfo& memory) {
  return memory.available + memory.opened;
}

/// Throws Error with the plan's table, and the changes of flags under which it would fit, unless
/// the plan fits into memory_limit(memory).
void require_memory(Backend& planner, const TrainingShape& shape, const MemoryPlan& plan,
                    const Backend::MemoryInfo& memory);

/// The same for opening a model.
void require_memory(Backend& planner, const InferenceShape& shape,
                    const Backend::MemoryInfo& memory);

/// "1.25 GiB"
std::string format_bytes(int64_t bytes);

}  // namespace mixtral
