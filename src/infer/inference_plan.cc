#include "infer/inference_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>

#include "base/detailed_error.h"
#include "infer/speculation.h"
#include "model/expert_cache.h"
#include "model/kv_cache.h"

namespace mixtral {

namespace {

int64_t planned_chunk(const Backend& planner, const InferenceShape& shape) {
  return StepTokens::of(planner, shape.chunk, shape.lone_chunk).alone;
}

/// The cache of an engine of this shape.
KvCache::Options planned_cache(const Backend& planner, const InferenceShape& shape) {
  const int64_t page = planner.page_tokens();
  return {.sequences = shape.sequences,
          .context = shape.context,
          .pages = (shape.cache_tokens + page - 1) / page,
          .chunk = std::min(planned_chunk(planner, shape), shape.context),
          .page_tokens = page,
          .type = shape.options.cache_type()};
}

}  // namespace

StepTokens StepTokens::of(const Backend& backend, int64_t chunk, int64_t lone_chunk) {
  StepTokens tokens{chunk, lone_chunk};
  if (tokens.beside <= 0) tokens.beside = backend.prompt_tokens();
  if (tokens.alone <= 0) tokens.alone = chunk > 0 ? chunk : backend.lone_prompt_tokens();
  tokens.alone = std::max(tokens.alone, tokens.beside);
  return tokens;
}

MemoryPlan plan_inference(Backend& planner, const InferenceShape& shape) {
  require_plannable(shape.sequences, shape.cache_tokens > 0 ? 1 : shape.context);
  Mixtral::Options options = shape.options;
  options.context = shape.context;
  options.planned = true;
  Mixtral model(planner, shape.config, options);
  const int64_t chunk = planned_chunk(planner, shape);
  const KvCache cache(planner, shape.config, planned_cache(planner, shape));
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
  // Beside the arena: the engine keeps them from step to step.
  const Shape logits_shape{rows, shape.config.vocab_size};
  const Dtype statistics = ops::statistics_dtype(options.compute);
  const Buffer logits(planner, logits_shape.numel() * size_of(statistics));
  const int64_t arena = arena_peak(planner, options, [&](Context& ctx) {
    const Batch device = upload(ctx, batch, shape.config.vocab_size, model.context());
    const Tensor hidden = model.forward(ctx, device, &cache, nullptr, nullptr);
    model.logits(ctx, hidden.slice(0, rows), logits.tensor(logits_shape, statistics));
  });
  MemoryPlan plan;
  plan.items = {{"weights", model_bytes(model)},
                {"key-value cache", cache.bytes()},
                {"activations and logits", arena + logits.bytes()}};
  if (options.stream_experts) {
    const ExpertSizes sizes = expert_sizes(model);
    const int64_t used = sizes.used_bytes(shape.expert_memory);
    if (planner.kind() == DeviceKind::cpu) {
      plan.items.push_back({"experts in memory", used + ExpertCache::staging_bytes()});
    } else {
      plan.items.push_back({"experts on the device", used});
      plan.host_items.push_back({"experts in host memory", sizes.all_bytes()});
    }
  }
  if (const int64_t gradients = model.store().gradient_bytes(); gradients > 0)
    plan.items.push_back({"gradients", gradients});
  add_opened(plan, planner);
  return plan;
}

InferenceShape fit_lone_chunk(Backend& planner, InferenceShape shape,
                              const Backend::MemoryInfo& memory) {
  const int64_t limit = memory_limit(memory);
  const int64_t least = StepTokens::of(planner, shape.chunk, 0).beside;
  shape.lone_chunk = std::max(least, planner.lone_prompt_tokens());
  while (shape.lone_chunk > least && plan_inference(planner, shape).total() > limit)
    shape.lone_chunk = std::max(least, shape.lone_chunk / 2);
  return shape;
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

InferenceShape fill_memory(Backend& planner, InferenceShape shape, double tokens, int64_t limit) {
  const int64_t most = shape.sequences, wanted = shape.cache_tokens;
  const auto fit = [&] {
    InferenceShape least = shape;
    least.cache_tokens = planner.page_tokens();
    const int64_t bytes =
        KvCache::bytes_needed(planner, shape.config, planned_cache(planner, least));
    least.cache_tokens *= 2;
    const int64_t page =
        KvCache::bytes_needed(planner, shape.config, planned_cache(planner, least)) - bytes;
    const int64_t free = limit - plan_inference(planner, least).total();
    const int64_t fitting = (2 + std::max<int64_t>(0, free / page)) * planner.page_tokens();
    shape.cache_tokens = wanted > 0 ? wanted : fitting;
    const double sequences = static_cast<double>(shape.cache_tokens) / std::max(tokens, 1.0);
    shape.sequences = std::clamp(static_cast<int64_t>(sequences), int64_t{1}, most);
  };
  // The fewer sequences are planned, the less their rows of a step take, and the more fit: by turns
  // it comes out too few, too many, and nearly as many as fit.
  for (int i = 0; i < 3; ++i) fit();
  // More than all of them can fill is of no use.
  const int64_t page = planner.page_tokens();
  const int64_t whole = (shape.context + page - 1) / page * page;
  if (wanted == 0)
    shape.cache_tokens = std::clamp(shape.cache_tokens, whole, shape.sequences * whole);
  return shape;
}

}  // namespace mixtral
