#include "train/training_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "base/detailed_error.h"
#include "model/adapter.h"
#include "train/language_model.h"

namespace mixtral {
namespace {

int64_t largest_parameter(Mixtral& model) {
  int64_t most = 0;
  model.for_each_parameter([&](nn::Parameter& p) {
    for (const auto& part : p.parts) most = std::max(most, part.shape.numel() * size_of(p.type));
  });
  return most;
}

std::unique_ptr<Criterion> make_criterion(Context& ctx, const TrainingShape& shape,
                                          const Mixtral& model, Adapter* adapter) {
  if (!shape.preference)
    return std::make_unique<LanguageModelCriterion>(
        ctx, model,
        LanguageModelCriterion::Settings{.objective = shape.objective,
                                         .recompute = shape.recompute});
  PreferenceSettings settings = *shape.preference;
  settings.recompute = shape.recompute;
  const PreferenceModels models{
      .policy = model, .adapter = adapter, .reference = shape.reference_model ? &model : nullptr};
  return std::make_unique<PreferenceCriterion>(ctx, models, settings);
}

/// Does with a batch what the shape's pass does.
void run_pass(Context& ctx, const TrainingShape& shape, const Mixtral& model, Adapter* adapter,
              const HostBatch& host) {
  const bool whole_step = shape.pass == Pass::step;
  if (whole_step || shape.preference) {
    const auto criterion = make_criterion(ctx, shape, model, adapter);
    const StepSize step{.weight = criterion->weight(host), .batches = 1};
    {
      const TrainingScope scope(
          ctx, {.dropout_seed = adapter ? ctx.allocate({1}, Dtype::i64) : Tensor()});
      criterion->begin(ctx, 0);
      criterion->add_gradients(ctx, host, step, 0);
    }
    if (whole_step) criterion->add_losses(ctx, host, step, 0);
    return;
  }
  Mixtral::RouterReports reports = model.allocate_reports(ctx);
  if (shape.pass == Pass::routes) model.allocate_token_routes(ctx, host.size(), reports);
  const LossTotals totals = LossTotals::allocate(ctx);
  const Batch batch = upload(ctx, host, model.config().vocab_size, model.context());
  if (shape.pass == Pass::routes)
    model.forward(ctx, batch, nullptr, nullptr, &reports);
  else if (shape.pass == Pass::losses)
    accumulate_losses(ctx, model, batch, shape.objective, 1, totals, &reports);
  else
    accumulate_gradients(
        ctx, model, batch, shape.objective,
        {.label_scale = ctx.allocate({1}, ctx.statistics()), .recompute = shape.recompute}, totals,
        &reports);
}

/// The operations' scratch memory, where attention's gradient has by far the most.
int64_t scratch_bytes(const Backend& planner, const TrainingShape& shape) {
  const bool learns = shape.pass == Pass::step || shape.pass == Pass::gradients;
  if (!learns) return 0;
  // Preference pairs are sequences of different lengths, though the plan's batch has equal ones.
  if (!shape.full_rows || shape.preference) return 0;
  const ModelConfig& c = shape.config;
  const ops::Heads heads{static_cast<int>(c.num_heads), static_cast<int>(c.num_kv_heads),
                         static_cast<int>(c.head_dim)};
  const int64_t tokens = shape.rows * shape.context;
  ops::AttentionBackward op;  // of which only shapes are read
  op.qkv = Tensor(nullptr, {tokens, heads.columns()}, shape.options.compute);
  op.sequence_starts = Tensor(nullptr, {shape.rows + 1}, Dtype::i32);
  op.heads = heads;
  op.window = c.sliding_window;
  op.longest = shape.context;
  return planner.scratch_bytes(op);
}

}  // namespace

MemoryPlan plan_training(Backend& planner, const TrainingShape& shape) {
  require_plannable(shape.rows, shape.context);
  const bool whole_step = shape.pass == Pass::step;
  const bool learns = whole_step || shape.pass == Pass::gradients;
  Mixtral::Options options = shape.options;
  options.trainable = learns && !shape.adapter;
  options.planned = true;
  Mixtral model(planner, shape.config, options);
  std::optional<Adapter> adapter;
  if (shape.adapter)
    adapter.emplace(planner, model, *shape.adapter, Adapter::Options{.trainable = learns});
  const nn::ParameterStore& trained = adapter ? adapter->store() : model.store();
  const int64_t sequences = shape.preference ? 2 * shape.rows : shape.rows;
  const HostBatch batch = blank_batch(sequences, shape.context);
  const int64_t arena = arena_peak(planner, options, [&](Context& ctx) {
    run_pass(ctx, shape, model, adapter ? &*adapter : nullptr, batch);
  });
  // Without a gradient, logits have the type of statistics alone.
  const Dtype derived = learns ? options.compute : ops::statistics_dtype(options.compute);
  const int64_t logits =
      shape.pass == Pass::routes
          ? 0
          : logits_slice_bytes(planner, batch.size(), shape.config.vocab_size, derived);
  MemoryPlan plan;
  plan.items = {{"weights", model_bytes(model)}};
  if (shape.reference_model) plan.items.push_back({"reference model", plan.items.front().bytes});
  if (adapter) plan.items.push_back({"adapter", trained.value_bytes()});
  if (learns) plan.items.push_back({"gradients", trained.gradient_bytes()});
  if (whole_step) {
    const Optimizer optimizer(planner, trained.groups(), shape.optimizer);
    int64_t masters = 0;
    for (const auto& group : trained.groups())
      if (group.trainable && group.value.dtype() == Dtype::bf16) masters += 2 * group.value.bytes();
    plan.items.push_back({"optimizer state", optimizer.state_bytes() - masters});
    if (masters > 0) plan.items.push_back({"master weights", masters});
  }
  plan.items.push_back({"activations", arena - logits});
  if (logits > 0) plan.items.push_back({"logits, a slice", logits});
  if (const int64_t scratch = scratch_bytes(planner, shape); scratch > 0)
    plan.items.push_back({"attention's scratch", scratch});
  if (whole_step && planner.kind() != DeviceKind::gpu)
    plan.items.push_back({"staging for checkpoints", largest_parameter(model)});
  add_opened(plan, planner);
  return plan;
}

void require_memory(Backend& planner, const TrainingShape& shape, const MemoryPlan& plan,
                    const Backend::MemoryInfo& memory) {
  const int64_t limit = memory_limit(memory);
  if (plan.total() <= limit) return;
  const bool whole_step = shape.pass == Pass::step;
  const bool learns = whole_step || shape.pass == Pass::gradients;
  // What other items (the program, the data) add to the steps' own needs stays the same.
  const int64_t others = plan.total() - plan_training(planner, shape).total();
  std::string advice;
  TrainingShape smaller = shape;
  std::string flags;
  auto try_change = [&](const std::string& flag) {
    flags += (flags.empty() ? "" : " ") + flag;
    const int64_t total = plan_training(planner, smaller).total() + others;
    if (total > limit) return false;
    advice = fmt::format("it would fit, with {}, under {}", format_bytes(total), flags);
    return true;
  };
  auto try_quantized_base = [&] {
    if ((learns && !shape.adapter) || shape.options.quantization) return false;
    const std::string before = flags;
    for (const auto format : {ops::WeightFormat::fp8, ops::WeightFormat::nf4}) {
      smaller.options.quantization = format;
      flags = before;
      if (try_change(fmt::format("‹quantize-base {}›", format.name()))) return true;
    }
    return false;
  };
  // Where the weights alone are too much, nothing else helps without this.
  const bool heavy = plan.bytes_of("weights") + plan.bytes_of("reference model") + others > limit;
  const bool fits = [&] {
    if (!learns && size_of(shape.options.weights) > size_of(Dtype::bf16)) {
      smaller.options.weights = Dtype::bf16;
      if (try_change("‹dtype bf16›")) return true;
    }
    if (heavy && try_quantized_base()) return true;
    if (learns && (!smaller.recompute.on || smaller.recompute.kept > 0)) {
      smaller.recompute = true;
      if (try_change("‹recompute›")) return true;
    }
    if (smaller.rows > 1) {
      const int64_t total_rows = smaller.rows;
      while (smaller.rows > 1) {
        smaller.rows /= 2;
        if (smaller.rows > 1 && plan_training(planner, smaller).total() + others > limit) continue;
        std::string flag = fmt::format("‹batch-size {}›", smaller.rows);
        if (whole_step)
          flag += fmt::format(" ‹grad-accumulation {}›",
                              (total_rows + smaller.rows - 1) / smaller.rows);
        if (try_change(flag)) return true;
      }
    }
    if (whole_step && !smaller.optimizer.bf16_state) {
      smaller.optimizer.bf16_state = true;
      if (try_change("‹optimizer-state bf16›")) return true;
    }
    if (!heavy && try_quantized_base()) return true;
    if (shape.pass == Pass::routes) return false;  // of a text, as long as it is
    for (const std::string before = flags; smaller.context > 64;) {
      smaller.context /= 2;
      flags = before;
      if (try_change(fmt::format("‹context {}›", smaller.context))) return true;
    }
    return false;
  }();
  if (!fits)
    advice = whole_step
                 ? "no change of batch, context or optimizer state makes it fit: choose a smaller "
                   "model (‹layers›, ‹hidden-size›, ‹experts›)"
             : shape.pass == Pass::routes
                 ? "no type makes it fit: give a shorter text, or choose a smaller model"
                 : "no type, batch or context makes it fit: choose a smaller model";
  throw DetailedError(fmt::format("{} more memory than is free: {} of {}; {}",
                                  whole_step ? "training needs" : "the model and a batch need",
                                  format_bytes(plan.total()), format_bytes(limit), advice),
                      plan.table());
}

}  // namespace mixtral
