#include "model/memory_plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/advice.h"
#include "ops/context.h"

namespace mixtral {
namespace {

/// Tokens of a batch, beyond which not even its plan is made.
constexpr int64_t kMostBatchTokens = int64_t{1} << 24;

}  // namespace

int64_t MemoryPlan::total() const {
  int64_t bytes = 0;
  for (const Item& item : items) bytes += item.bytes;
  return bytes;
}

int64_t MemoryPlan::bytes_of(std::string_view name) const {
  for (const auto* list : {&items, &host_items})
    if (const auto item = std::ranges::find(*list, name, &Item::name); item != list->end())
      return item->bytes;
  return 0;
}

std::string MemoryPlan::table() const {
  std::string text;
  const auto add = [&](std::string_view name, int64_t bytes) {
    text += fmt::format("  {:<28} {:>12}\n", name, format_bytes(bytes));
  };
  for (const Item& item : items) add(item.name, item.bytes);
  add("total", total());
  for (const Item& item : host_items) add(item.name, item.bytes);
  return text;
}

int64_t MemoryPlan::arena() const { return bytes_of("activations") + bytes_of("logits, a slice"); }

void require_plannable(int64_t rows, int64_t context) {
  if (rows <= kMostBatchTokens / std::max<int64_t>(context, 1)) return;
  throw AdvisedUsageError(
      fmt::format("‹batch-size {}› x ‹context {}›: a batch of more than {} tokens is not planned; "
                  "give fewer rows, and ‹grad-accumulation› for larger steps",
                  rows, context, kMostBatchTokens));
}

HostBatch blank_batch(int64_t rows, int64_t context) {
  const std::vector<int32_t> sequence(static_cast<size_t>(context), 0);
  HostBatch batch;
  for (int64_t i = 0; i < rows; ++i) batch.append(sequence);
  return batch;
}

int64_t arena_peak(Backend& planner, const Mixtral::Options& options,
                   const std::function<void(Context&)>& work) {
  // A growing arena's blocks have unused ends: the second pass has one block.
  int64_t peak = 0;
  for (int pass = 0; pass < 2; ++pass) {
    Arena arena(planner);
    if (peak > 0) arena.reserve(peak);
    Context ctx(planner, arena, options.compute);
    ctx.set_operands(options.operands);
    work(ctx);
    peak = arena.peak();
  }
  return peak;
}

int64_t model_bytes(const Mixtral& model) {
  const int64_t angles = model.context() * model.config().head_dim *
                         size_of(ops::statistics_dtype(model.options().compute));
  return model.store().value_bytes() + angles;
}

void add_opened(MemoryPlan& plan, const Backend& planner) {
  if (planner.kind() == DeviceKind::gpu)
    plan.items.push_back({"driver and other programs", planner.memory().opened});
}

std::string format_bytes(int64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (bytes < int64_t{1} << 20) return fmt::format("{:.1f} KiB", value / 0x1p10);
  if (bytes < int64_t{1} << 30) return fmt::format("{:.1f} MiB", value / 0x1p20);
  return fmt::format("{:.2f} GiB", value / 0x1p30);
}

}  // namespace mixtral
