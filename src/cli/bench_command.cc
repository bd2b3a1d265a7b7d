#include "cli/bench_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "base/random.h"
#include "cli/bench_generation.h"
#include "cli/bench_offline.h"
#include "cli/bench_options.h"
#include "cli/bench_report.h"
#include "cli/bench_serve.h"
#include "cli/common.h"
#include "cli/finetune_options.h"
#include "cli/train_session.h"
#include "train/defaults.h"
#include "train/language_model.h"
#include "train/optimizer.h"
#include "train/step_runner.h"

namespace mixtral {
namespace {

constexpr const char* kExamples =
    "Weights and tokens are random: nothing is read but a configuration. Examples:\n"
    "  mixtral bench pretrain --model seed --batch-size 8 --context 2048\n"
    "  mixtral bench pretrain --model 8x7b --layers 2 --batch-size 4 --context 4096 --recompute\n"
    "  mixtral bench finetune --model 8x7b --targets attention --rank 16 --context 2048\n"
    "  mixtral bench finetune --model 8x7b --quantize-base fp8 --recompute\n"
    "  mixtral bench decode --model seed --context 512 --tokens 64 --json\n"
    "  mixtral bench ops --model small          # ceilings and kernels alone\n"
    "  mixtral bench serve-offline --model 8x7b --requests 3000   # many requests, all there at "
    "once\n"
    "  mixtral bench serve --url http://127.0.0.1:8080/v1 --clients 8   # a server under load\n";

HostBatch random_batch(const BenchOptions& o, const ModelConfig& config, uint64_t seed) {
  HostBatch batch;
  for (int64_t row = 0; row < o.batch_size; ++row)
    batch.append(random_tokens(config, o.context, seed * 1000 + static_cast<uint64_t>(row)));
  return batch;
}

int64_t trained_parameters(const std::vector<nn::ParameterStore::Group>& groups) {
  int64_t count = 0;
  for (const auto& group : groups) count += group.grad ? group.grad.numel() : 0;
  return count;
}

/// Model FLOPs of a tuned token: forward and the gradients of activations through the base, and
/// all three products of the adapter.
double tuning_flops_per_token(const ModelConfig& config, int64_t context, int64_t adapter) {
  const auto active = static_cast<double>(count_parameters(config).active);
  return training_flops_per_token(config, context) - 2 * active + 6 * static_cast<double>(adapter);
}

void bench_training(const BenchOptions& o, const ModelConfig& config, Backend& backend,
                    Report& report) {
  const bool tuning = o.work == "finetune";
  const Precision precision =
      tuning ? choose_precision(o.common.dtype, backend, Purpose::tuning, config.dtype)
             : choose_precision(o.common.dtype, backend, Purpose::training, config.dtype);
  const Mixtral::Options options{.weights = precision.weights,
                                 .compute = precision.compute,
                                 .context = o.context,
                                 .trainable = !tuning,
                                 .rope_frequencies = o.common.rope_dtype(),
                                 .quantization = o.common.quantization()};
  std::optional<AdapterFile> file;
  if (tuning) file = new_adapter({.targets = parse_targets(o.targets), .rank = o.rank}, config);
  const Recompute recompute = recompute_rule(o.recompute, o.keep_layers);
  OptimizerSettings settings;
  settings.bf16_state = o.optimizer_state == "bf16";
  const TrainingMemory memory = require_training_memory(backend, {.config = config,
                                                                  .options = options,
                                                                  .objective = {},
                                                                  .optimizer = settings,
                                                                  .rows = o.batch_size,
                                                                  .context = o.context,
                                                                  .recompute = recompute,
                                                                  .adapter = file});
  Ceilings ceilings = measure_ceilings(backend, precision, o.common.threads);
  Mixtral model(backend, config, options);
  draw_weights(backend, model, o.common.seed);
  std::unique_ptr<Adapter> adapter;
  if (file)
    adapter = std::make_unique<Adapter>(backend, model, std::move(*file),
                                        Adapter::Options{.trainable = true, .seed = 1});
  const auto& groups = adapter ? adapter->store().groups() : model.store().groups();
  const int64_t trained = trained_parameters(groups);
  Arena arena(backend);
  arena.reserve(memory.arena);
  Context ctx(backend, arena, precision.compute);
  ctx.set_operands(precision.operands);
  LanguageModelCriterion criterion(ctx, model, {.objective = {}, .recompute = recompute});
  Optimizer optimizer(backend, groups, settings);
  StepRunner runner(ctx, criterion, optimizer, records_steps(o.graph, backend));

  uint64_t seed = o.common.seed;
  auto stage = [&](StepRunner& on) {
    StepRunner::Step step{.lr = 1e-4};
    for (int64_t i = 0; i < o.accumulation; ++i)
      step.batches.push_back(random_batch(o, config, seed++));
    return on.stage(std::move(step));
  };
  StepSize size = stage(runner);
  // As in training: the next step's inputs are drawn and copied while the device works.
  auto step = [&] {
    runner.run();
    size = stage(runner);
  };
  for (int64_t i = 1; i < o.warmup; ++i) step();
  const auto print_kernels = [&] {
    Profiler profiler(backend);
    Context profiled(backend, arena, precision.compute, &profiler);
    profiled.set_operands(precision.operands);
    StepRunner waiting(profiled, criterion, optimizer, false);
    stage(waiting);
    waiting.run();
    ceilings.raise(measure_ceilings(backend, precision, o.common.threads));
    if (o.work == "ops") report_ceilings(report, ceilings);
    report_profile(report, ceilings, profiler);
  };
  if (o.work == "ops") {
    step();  // what is done once alone is no kernel's time
    backend.synchronize();
    print_kernels();
    return;
  }
  const auto times = time_runs(backend, static_cast<int>(o.steps), step);
  const Figures figures = criterion.read(ctx, 0, size);
  const double seconds = median(times);
  ceilings.raise(measure_ceilings(backend, precision, o.common.threads));
  report_ceilings(report, ceilings);
  const auto tokens = static_cast<double>(o.accumulation * o.batch_size * o.context);
  const double flops = tuning ? tuning_flops_per_token(config, o.context, trained)
                              : training_flops_per_token(config, o.context);
  report.line("trained_parameters", fmt::format("{}", trained), static_cast<double>(trained));
  report.line("step_ms",
              fmt::format("{:.2f} (median of {}; {:.2f} to {:.2f})", seconds * 1e3, times.size(),
                          std::ranges::min(times) * 1e3, std::ranges::max(times) * 1e3),
              seconds * 1e3);
  report_rate(report, ceilings, seconds, tokens, flops);
  report.line(
      "loss",
      fmt::format("{:.4f} after {} steps of random tokens", figures.loss, optimizer.steps()),
      figures.loss);
  report.line("replayed_steps", fmt::format("{}", runner.replayed()),
              static_cast<double>(runner.replayed()));
  report.line("planned_gib", fmt::format("{:.3f}", static_cast<double>(memory.planned) / (1 << 30)),
              static_cast<double>(memory.planned) / (1 << 30));
  const double peak = static_cast<double>(peak_memory(backend)) / (1 << 30);
  report.line("peak_gib", fmt::format("{:.3f}", peak), peak);
  if (const auto info = backend.memory(); backend.kind() == DeviceKind::gpu) {
    const auto gib = [](int64_t bytes) { return static_cast<double>(bytes) / (1 << 30); };
    report.line("scratch_gib", fmt::format("{:.3f}", gib(info.scratch)), gib(info.scratch));
    report.line("opened_gib",
                fmt::format("{:.3f}, before anything was allocated", gib(info.opened)),
                gib(info.opened));
  }
  print_kernels();
}

/// Refuses flags of which a work could make nothing.
void refuse_flags_of_others(const cli::App& command, const BenchOptions& o) {
  const auto refuse = [&](const std::vector<std::string>& flags) {
    refuse_unused(command, "bench " + o.work, flags);
  };
  if (o.work != "decode") refuse({"--tokens", "--speculate"});
  if (o.trains()) refuse({"--batch", "--depth", "--profile", "--expert-memory", "--cache-dtype"});
  if (o.work != "finetune") refuse({"--rank", "--targets"});
  // One step, kernel by kernel.
  if (o.work == "ops") refuse({"--steps", "--graph"});
  if (!o.trains())
    refuse({"--batch-size", "--grad-accumulation", "--optimizer-state", "--graph", "--recompute",
            "--keep-layers"});
}

void run_bench(const BenchOptions& o) {
  if (o.common.quantization() && (o.work == "pretrain" || o.work == "ops"))
    throw UsageError(
        fmt::format("--quantize-base {}: bench {} trains the weights themselves, which must stay "
                    "as they are; it is for bench finetune, prefill and decode",
                    o.common.quantize_base, o.work));
  const ModelSource source = open_source(o.common, {.model = o.model});
  ModelConfig config = source.config();
  if (o.layers) config.num_layers = *o.layers;
  config.max_positions = std::max(config.max_positions, o.depth + o.context + o.tokens + 1);
  config.validate("--model");
  const auto backend = o.common.open_device();
  Report report(o.common.json);
  report.json()["bench"] = o.work;
  report.json()["model"] = o.model;
  report.json()["layers"] = config.num_layers;
  report.json()["device"] = backend->description();
  report.json()["dtype"] = o.common.dtype;
  report.json()["context"] = o.context;
  if (o.trains()) report.json()["batch_size"] = o.batch_size;
  if (!o.trains()) {
    report.json()["batch"] = o.batch;
    report.json()["depth"] = o.depth;
  }
  if (o.work != "pretrain") report.json()["quantize_base"] = o.common.quantize_base;
  if (!o.common.json)
    fmt::print(
        "bench {}: {} with {} layers{}, {}, --dtype {}, {}\n", o.work, o.model, config.num_layers,
        o.common.quantization() ? fmt::format(" in {}", o.common.quantize_base) : "",
        o.trains()
            ? fmt::format("{} x {} x {} tokens a step", o.accumulation, o.batch_size, o.context)
        : o.work == "prefill"
            ? fmt::format("{} prompts of {} tokens after {}", o.batch, o.context, o.depth)
            : fmt::format("{} tokens after {}, {} sequences at once", o.tokens,
                          o.depth > 0 ? o.depth : o.context, o.batch),
        o.common.dtype, backend->description());
  if (o.trains())
    bench_training(o, config, *backend, report);
  else
    bench_generation(o, source, config, *backend, report);
  if (o.common.json) fmt::print("{}\n", report.json().dump());
}

}  // namespace

void refuse_flags_in_front(const cli::App& bench, std::string_view work) {
  for (const cli::Option* option : bench.get_options())
    if (option->count() > 0)
      throw UsageError(
          fmt::format("{}: bench {} has no use for it there; its own flags stand behind `{}`",
                      option->get_name(), work, work));
}

void add_length_options(cli::App& command, std::string& prompts, std::string& answers) {
  command
      .add_option("--prompt-tokens", prompts,
                  "Length of prompts: N, LEAST-MOST or lognormal:MEDIAN:SIGMA[:MOST]")
      ->capture_default_str();
  command
      .add_option("--max-tokens", answers,
                  "Length of answers, at most: N, LEAST-MOST or lognormal:MEDIAN:SIGMA[:MOST]")
      ->capture_default_str();
}

std::vector<int32_t> random_tokens(const ModelConfig& config, int64_t count, uint64_t seed) {
  RandomStream random(seed, 0);
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (int32_t& token : tokens)
    token = static_cast<int32_t>(random.next() % static_cast<uint64_t>(config.vocab_size));
  return tokens;
}

void add_bench_command(cli::App& app) {
  cli::App* command = app.add_subcommand(
      "bench", "Measure training and generation beside the machine's ceilings, kernel by kernel");
  command->footer(kExamples);
  add_bench_serve_command(*command);
  add_bench_offline_command(*command);
  auto o = std::make_shared<BenchOptions>();
  command
      ->add_option(
          "work", o->work,
          "pretrain, finetune, prefill, decode, or ops: of pretrain, the table of kernels alone")
      ->check(cli::IsMember({"pretrain", "finetune", "prefill", "decode", "ops"}));
  command->add_option("-m,--model", o->model, "A built-in configuration or a model directory")
      ->capture_default_str();
  auto count = [&](const char* flag, int64_t& value, int64_t least, const char* help) {
    command->add_option(flag, value, help)
        ->capture_default_str()
        ->check(cli::Range(least, int64_t{1} << 24));
  };
  command->add_option("--layers", o->layers, "Instead of the configuration's")
      ->check(cli::Range(int64_t{1}, int64_t{1024}));
  count("--context", o->context, 1,
        "Tokens of a sequence (training), or of the prompt (prefill, decode)");
  count("--batch-size", o->batch_size, 1, "Sequences of a micro-batch (training)");
  count("--grad-accumulation", o->accumulation, 1, "Micro-batches of a step (training)");
  count("--steps", o->steps, 1, "Runs that are timed; the median counts (all but ops)");
  count("--warmup", o->warmup, 0, "Runs before these");
  count("--tokens", o->tokens, 2, "Tokens to generate after the prompt (decode)");
  command
      ->add_option("--speculate", o->speculate,
                   "Measure speculative decoding with so many draft tokens, in turn with plain "
                   "decoding (decode)")
      ->capture_default_str()
      ->check(cli::Range(0, 64));
  count("--batch", o->batch, 1, "Sequences at once (prefill, decode)");
  count("--depth", o->depth, 0,
        "Tokens of each sequence that the cache holds before what is measured (prefill; decode, "
        "where 0 means --context)");
  command->add_flag("--profile", o->profile,
                    "Show the time of one decoding step, or one reading of the prompts, by kernel "
                    "(prefill, decode)");
  count("--rank", o->rank, 1, "Of the adapter (finetune)");
  command->add_option("--targets", o->targets, "Of the adapter (finetune)")->capture_default_str();
  command->add_option("--optimizer-state", o->optimizer_state, "fp32 or bf16 (training)")
      ->capture_default_str()
      ->check(cli::IsMember({"fp32", "bf16"}));
  command->add_option("--graph", o->graph, std::string(kGraphHelp) + " (pretrain, finetune)")
      ->capture_default_str()
      ->check(cli::IsMember({"auto", "on", "off"}));
  command->add_flag("--recompute", o->recompute,
                    "Keep only the blocks' inputs for backward (training)");
  count("--keep-layers", o->keep_layers, 0, "With --recompute: the last so many layers keep all");
  o->common.add_model_flags(*command);
  o->common.add_expert_memory(*command);
  o->common.add_cache_dtype(*command);
  command->get_option("--random-weights")
      ->description("Draw the weights though --model has some, as pretrain and finetune always do");
  o->common.add_to(*command);
  command->callback([o, command] {
    if (!command->get_subcommands().empty()) return;
    if (o->work.empty())
      throw UsageError(
          "bench: say what to measure: pretrain, finetune, prefill, decode, ops, serve or "
          "serve-offline");
    refuse_flags_of_others(*command, *o);
    run_bench(*o);
  });
}

}  // namespace mixtral
