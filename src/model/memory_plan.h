#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "model/batch.h"
#include "model/mixtral.h"

namespace mixtral {

/// What a run needs of a device's memory, item by item.
struct MemoryPlan {
  struct Item {
    std::string name;  // "weights"
    int64_t bytes = 0;
  };
  std::vector<Item> items;
  std::vector<Item> host_items;  // of the host's memory beside a GPU's; no part of the total

  int64_t total() const;
  int64_t bytes_of(std::string_view name) const;  // 0 when there is no such item
  int64_t arena() const;                          // of a batch's activations, logits included
  /// Lines of names and sizes, the total last, and the host's items behind it.
  std::string table() const;
};

/// What a plan may come to: what is available, and what was in use when the device was opened,
/// which plans count.
inline int64_t memory_limit(const Backend::MemoryInfo& memory) {
  return memory.available + memory.opened;
}

/// "1.25 GiB"
std::string format_bytes(int64_t bytes);

// What the plans of training and of inference share.

/// Throws UsageError where a batch of `rows` sequences of `context` tokens is too large to plan.
void require_plannable(int64_t rows, int64_t context);

/// `rows` sequences of `context` tokens, all labelled.
HostBatch blank_batch(int64_t rows, int64_t context);

/// The most bytes of an arena that `work` uses at once.
int64_t arena_peak(Backend& planner, const Mixtral::Options& options,
                   const std::function<void(Context&)>& work);

/// The bytes of a model's weights and of its table of RoPE angles.
int64_t model_bytes(const Mixtral& model);

/// Adds what a GPU's memory holds before this program allocates anything.
void add_opened(MemoryPlan& plan, const Backend& planner);

}  // namespace mixtral
