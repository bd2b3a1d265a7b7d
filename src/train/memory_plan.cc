#include "train/memory_plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "model/kv_cache.h"
#include "train/language_model.h"

namespace mixtral {
namespace {

/// `rows` sequences of `context` tokens, all labelled.
HostBatch blank_batch(int64_t rows, int64_t context) {
  const std::vector<int32_t> sequence(static_cast<size_t>(context), 0);
  HostBatch batch;
  for (int64_t i = 0; i < rows; ++i) batch.append(sequence);
  return batch;
}

/// The most of an arena that `work` uses at once. It is run twice: blocks of the first, growing
/// arena have unused ends, which the second pass, in one block, does not.
template <class Work>
int64_t arena_peak(Backend& planner, Dtype compute, const Work& work) {
  int64_t peak = 0;
  for (int pass = 0; pass < 2; ++pass) {
    Arena arena(planner);
    if (peak > 0) arena.reserve(peak);
    Context ctx(planner, arena, compute);
    work(ctx);
    peak = arena.peak();
  }
  return peak;
}

int64_t largest_parameter(Mixtral& model) {
  int64_t most = 0;
  model.for_each_parameter([&](nn::Parameter& p) {
    for (const auto& part : p.parts)
      most = std::max(most, part.shape.numel() * size_of(p.value.dtype()));
  });
  return most;
}

int64_t rope_bytes(const Mixtral& model) {
  return model.context() * model.config().head_dim *
         size_of(ops::statistics_dtype(model.options().compute));
}

}  // namespace

int64_t MemoryPlan::total() const {
  int64_t bytes = 0;
  for (const Item& item : items) bytes += item.bytes;
  return bytes;
}

int64_t MemoryPlan::bytes_of(std::string_view name) const {
  const auto item = std::ranges::find(items, name, &Item::name);
  return item == items.end() ? 0 : item->bytes;
}

std::string MemoryPlan::table() const {
  std::string text;
  for (const Item& item : items)
    text += fmt::format("  {:<28} {:>12}\n", item.name, format_bytes(item.bytes));
  return text + fmt::format("  {:<28} {:>12}\n", "total", format_bytes(total()));
}

MemoryPlan plan_training(Backend& planner, const TrainingShape& shape) {
  Mixtral::Options options = shape.options;
  options.trainable = true;
  Mixtral model(planner, shape.config, options);
  const Optimizer optimizer(planner, model.store().groups(), shape.optimizer);
  const HostBatch batch = blank_batch(shape.rows, shape.context);
  const StepSize step{.weight = batch.label_count(), .batches = 1};
  const int64_t arena = arena_peak(planner, options.compute, [&](Context& ctx) {
    LanguageModelCriterion criterion(ctx, model,
                                     {.objective = shape.objective, .recompute = shape.recompute});
    criterion.begin(ctx, 0);
    criterion.add_gradients(ctx, batch, step, 0);
    criterion.add_losses(ctx, batch, step, 0);
  });
  const int64_t logits = logits_slice_bytes(batch.size(), shape.config.vocab_size,
                                            ops::statistics_dtype(options.compute));
  const int64_t masters = options.weights == Dtype::bf16 ? 2 * model.store().value_bytes() : 0;
  MemoryPlan plan;
  plan.items = {{"weights", model.store().value_bytes() + rope_bytes(model)},
                {"gradients", model.store().gradient_bytes()},
                {"optimizer state", optimizer.state_bytes() - masters}};
  if (masters > 0) plan.items.push_back({"master weights", masters});
  plan.items.push_back({"activations", arena - logits});
  plan.items.push_back({"logits, a slice", logits});
  plan.items.push_back({"staging for checkpoints", largest_parameter(model)});
  return plan;
}

MemoryPlan plan_inference(Backend& planner, const InferenceShape& shape) {
  Mixtral::Options options = shape.options;
  options.trainable = false;
  options.context = shape.context;
  Mixtral model(planner, shape.config, options);
  const int64_t chunk = std::min(shape.chunk, shape.context);
  const KvCache cache(planner, shape.config, shape.sequences, shape.context, chunk,
                      options.compute);
  HostBatch batch = blank_batch(1, chunk);
  batch.slots.assign(static_cast<size_t>(chunk), 0);
  batch.labels.clear();
  const int64_t arena = arena_peak(planner, options.compute, [&](Context& ctx) {
    const Batch device = upload(ctx, batch, shape.config.vocab_size, model.context());
    const Tensor hidden = model.forward(ctx, device, &cache, nullptr, nullptr);
    const Tensor logits =
        ctx.allocate({shape.sequences, shape.config.vocab_size}, ctx.statistics());
    if (shape.sequences <= chunk) model.logits(ctx, hidden.slice(0, shape.sequences), logits);
  });
  MemoryPlan plan;
  plan.items = {{"weights", model.store().value_bytes() + rope_bytes(model)},
                {"key-value cache", cache.bytes()},
                {"activations and logits", arena}};
  return plan;
}

void require_memory(Backend& planner, const TrainingShape& shape, const MemoryPlan& plan,
                    const Backend::MemoryInfo& memory) {
  if (plan.total() <= memory.available) return;
  // What other items (the program, the data) add to the steps' own needs stays the same.
  const int64_t others = plan.total() - plan_training(planner, shape).total();
  std::string advice;
  TrainingShape smaller = shape;
  std::string flags;
  auto try_change = [&](const std::string& flag) {
    flags += (flags.empty() ? "" : " ") + flag;
    const int64_t total = plan_training(planner, smaller).total() + others;
    if (total > memory.available) return false;
    advice = fmt::format("it would fit, with {}, under {}", format_bytes(total), flags);
    return true;
  };
  const bool fits = [&] {
    if (!smaller.recompute) {
      smaller.recompute = true;
      if (try_change("--recompute")) return true;
    }
    if (smaller.rows > 1) {
      const int64_t total_rows = smaller.rows;
      while (smaller.rows > 1) {
        smaller.rows /= 2;
        if (smaller.rows > 1 && plan_training(planner, smaller).total() + others > memory.available)
          continue;
        if (try_change(fmt::format("--batch-size {} --grad-accumulation {}", smaller.rows,
                                   (total_rows + smaller.rows - 1) / smaller.rows)))
          return true;
      }
    }
    if (!smaller.optimizer.bf16_state) {
      smaller.optimizer.bf16_state = true;
      if (try_change("--optimizer-state bf16")) return true;
    }
    for (const std::string before = flags; smaller.context > 64;) {
      smaller.context /= 2;
      flags = before;
      if (try_change(fmt::format("--context {}", smaller.context))) return true;
    }
    return false;
  }();
  if (!fits)
    advice =
        "no change of batch, context or optimizer state makes it fit: choose a smaller model "
        "(--layers, --hidden-size, --experts)";
  throw Error(fmt::format("training needs more memory than is free: {} of {}; {}\n{}",
                          format_bytes(plan.total()), format_bytes(memory.available), advice,
                          plan.table()));
}

std::string format_bytes(int64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (bytes < int64_t{1} << 20) return fmt::format("{:.1f} KiB", value / 0x1p10);
  if (bytes < int64_t{1} << 30) return fmt::format("{:.1f} MiB", value / 0x1p20);
  return fmt::format("{:.2f} GiB", value / 0x1p30);
}

}  // namespace mixtral
