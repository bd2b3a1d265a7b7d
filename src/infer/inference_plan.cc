#include "infer/inference_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>

#include "base/detailed_error.h"
#include "infer/speculation.h"
#include "model/expert_cache.h"
#include "model/kv_cache.h"

namespace mixtral {

MemoryPlan plan_inference(Backend& planner, const InferenceShape& shape) {
  require_plannable(shape.sequences, shape.context);
  Mixtral::Options options = shape.options;
  options.context = shape.context;
  options.planned = true;
  Mixtral model(planner, shape.config, options);
  const int64_t chunk = shape.chunk > 0 ? shape.chunk : planner.prompt_tokens();
  const KvCache cache(planner, shape.config,
                      {.sequences = shape.sequences,
                       .context = shape.context,
                       .chunk = std::min(chunk, shape.context),
                       .dtype = options.cache_type()});
  // A step of an engine: some tokens of prompts, one of each sequence, and draft tokens.
  HostBatch batch;
  for (int64_t left = std::min(chunk, shape.sequences * shape.context); left > 0;
       left -= shape.context)
    batch.append(std::vector<int32_t>(static_cast<size_t>(std::min(left, shape.context)), 0));
  batch.labels.clear();
  const int64_t rows = shape.sequences + draft_rows(shape.sequences, shape.draft_tokens);
  for (int64_t row = 0; row < rows; ++row) {
    batch.tokens.push_back(0);
    batch.positions.push_back(0);
    batch.sequence_starts.push_back(static_cast<int32_t>(batch.tokens.size()));
  }
  batch.rows.assign(batch.tokens.size(), 0);
  const int64_t arena = arena_peak(planner, options, [&](Context& ctx) {
    const Batch device = upload(ctx, batch, shape.config.vocab_size, model.context());
    const Tensor hidden = model.forward(ctx, device, &cache, nullptr, nullptr);
    const Tensor logits = ctx.allocate({rows, shape.config.vocab_size}, ctx.statistics());
    model.logits(ctx, hidden.slice(0, rows), logits);
  });
  MemoryPlan plan;
  plan.items = {{"weights", model_bytes(model)},
                {"key-value cache", cache.bytes()},
                {"activations and logits", arena}};
  if (options.stream_experts)
    plan.items.push_back({"experts in memory", expert_sizes(model).used_bytes(shape.expert_memory) +
                                                   ExpertSizes::staging_bytes()});
  if (const int64_t gradients = model.store().gradient_bytes(); gradients > 0)
    plan.items.push_back({"gradients", gradients});
  add_opened(plan, planner);
  return plan;
}

void require_memory(Backend& planner, const InferenceShape& shape,
                    const Backend::MemoryInfo& memory) {
  const MemoryPlan plan = plan_inference(planner, shape);
  const int64_t limit = memory_limit(memory);
  if (plan.total() <= limit) return;
  InferenceShape smaller = shape;
  std::string flags, advice;
  auto try_change = [&](const std::string& flag) {
    const int64_t total = plan_inference(planner, smaller).total();
    if (total <= limit && advice.empty())
      advice = fmt::format("it would fit, with {}, under{} {}", format_bytes(total), flags, flag);
    return !advice.empty();
  };
  if (!shape.options.trainable && size_of(smaller.options.weights) > size_of(Dtype::bf16)) {
    smaller.options.weights = Dtype::bf16;
    if (!try_change("‹dtype bf16›")) flags = " ‹dtype bf16›";
  }
  // Where the weights alone are too much, no shorter context helps.
  if (!shape.options.trainable && !shape.options.quantization && advice.empty() &&
      plan_inference(planner, smaller).bytes_of("weights") > limit) {
    std::string flag;
    for (const auto format : {ops::WeightFormat::fp8, ops::WeightFormat::nf4}) {
      smaller.options.quantization = format;
      flag = fmt::format("‹quantize-base {}›", format.name());
      if (try_change(flag)) break;
    }
    flags += " " + flag;
  }
  while (advice.empty() && smaller.context > 64) {
    smaller.context /= 2;
    smaller.options.context = smaller.context;
    try_change(fmt::format("‹context {}›", smaller.context));
  }
  if (advice.empty()) advice = "no type or context makes it fit: choose a smaller model";
  throw DetailedError(fmt::format("the model needs more memory than is free: {} of {}; {}",
                                  format_bytes(plan.total()), format_bytes(limit), advice),
                      plan.table());
}

}  // namespace mixtral
