#include "train/memory_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "base/advice.h"
#include "base/detailed_error.h"
#include "model/adapter.h"
#include "model/kv_cache.h"
#include "train/language_model.h"

namespace mixtral {
namespace {

/// Tokens of a batch, beyond which not even its plan is made.
constexpr int64_t kMostBatchTokens = int64_t{1} << 24;

void require_plannable(int64_t rows, int64_t context) {
  if (rows <= kMostBatchTokens / std::max<int64_t>(context, 1)) return;
  throw AdvisedUsageError(
      fmt::format("‹batch-size {}› x ‹context {}›: a batch of more than {} tokens is not planned; "
                  "give fewer rows, and ‹grad-accumulation› for larger steps",
                  rows, context, kMostBatchTokens));
}

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
int64_t arena_peak(Backend& planner, const Mixtral::Options& options, const Work& work) {
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

int64_t rope_bytes(const Mixtral& model) {
  return model.context() * model.config().head_dim *
         size_of(ops::statistics_dtype(model.options().compute));
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

/// What a GPU's memory holds before anything of this program's.
void add_opened(MemoryPlan& plan, const Backend& planner) {
  if (planner.kind() == DeviceKind::gpu)
    plan.items.push_back({"driver and other programs", planner.memory().opened});
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

int64_t MemoryPlan::arena() const { return bytes_of("activations") + bytes_of("logits, a slice"); }

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
  plan.items = {{"weights", model.store().value_bytes() + rope_bytes(model)}};
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

MemoryPlan plan_inference(Backend& planner, const InferenceShape& shape) {
  require_plannable(shape.sequences, shape.context);
  Mixtral::Options options = shape.options;
  options.context = shape.context;
  options.planned = true;
  Mixtral model(planner, shape.config, options);
  const int64_t chunk = std::min(shape.chunk, shape.context);
  const KvCache cache(planner, shape.config,
                      {.sequences = shape.sequences,
                       .context = shape.context,
                       .chunk = chunk,
                       .dtype = options.compute});
  // A step of an engine: some tokens of prompts, and one of each sequence.
  HostBatch batch = blank_batch(1, chunk);
  batch.labels.clear();
  for (int64_t s = 0; s < shape.sequences; ++s) {
    batch.tokens.push_back(0);
    batch.positions.push_back(0);
    batch.sequence_starts.push_back(static_cast<int32_t>(batch.tokens.size()));
  }
  batch.rows.assign(batch.tokens.size(), 0);
  const int64_t arena = arena_peak(planner, options, [&](Context& ctx) {
    const Batch device = upload(ctx, batch, shape.config.vocab_size, model.context());
    const Tensor hidden = model.forward(ctx, device, &cache, nullptr, nullptr);
    const Tensor logits =
        ctx.allocate({shape.sequences, shape.config.vocab_size}, ctx.statistics());
    model.logits(ctx, hidden.slice(0, shape.sequences), logits);
  });
  MemoryPlan plan;
  plan.items = {{"weights", model.store().value_bytes() + rope_bytes(model)},
                {"key-value cache", cache.bytes()},
                {"activations and logits", arena}};
  if (const int64_t gradients = model.store().gradient_bytes(); gradients > 0)
    plan.items.push_back({"gradients", gradients});
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

std::string format_bytes(int64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (bytes < int64_t{1} << 20) return fmt::format("{:.1f} KiB", value / 0x1p10);
  if (bytes < int64_t{1} << 30) return fmt::format("{:.1f} MiB", value / 0x1p20);
  return fmt::format("{:.2f} GiB", value / 0x1p30);
}

}  // namespace mixtral
