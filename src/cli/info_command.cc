#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "backends/registry.h"
#include "cli/common.h"
#include "cli/evaluate_command.h"
#include "cli/finetune_options.h"
#include "cli/run_config.h"
#include "infer/inference_plan.h"
#include "open/expert_streaming.h"
#include "train/training_plan.h"

namespace mixtral {
namespace {

struct InfoOptions {
  CommonOptions common;
  std::string model;
  int64_t context = 0, batch_size = 1;
  bool recompute = false, bf16_state = false;
  double gpu = 0;  // GiB
  std::string targets = "q_proj,v_proj,gate";
  int64_t rank = 8, num_layers = 0;
};

/// "46,702,792,704".
std::string with_separators(int64_t value) {
  std::string text = std::to_string(value);
  for (size_t at = text.size(); at > 3; at -= 3) text.insert(at - 3, ",");
  return text;
}

/// "46.7B", "1.3M".
std::string in_short(int64_t value) {
  const auto v = static_cast<double>(value);
  if (v >= 1e9) return fmt::format("{:.1f}B", v / 1e9);
  if (v >= 1e6) return fmt::format("{:.1f}M", v / 1e6);
  if (v >= 1e3) return fmt::format("{:.1f}k", v / 1e3);
  return std::to_string(value);
}

/// A kind of work, and what it takes: as asked for, and by the flags that take less.
struct Work {
  struct Way {
    std::string flags;  // empty: as asked for
    int64_t bytes = 0;
  };
  std::string name;
  std::vector<Way> ways;
};

/// "generating: 87.2 GiB, does not fit; with --quantize-base nf4 24.1 GiB, fits".
std::string verdict(const Work& work, int64_t limit) {
  const auto fits = [&](const Work::Way& way) { return way.bytes <= limit; };
  const Work::Way& asked = work.ways.front();
  std::string text = fmt::format("  {:<11}{}, {}", work.name, format_bytes(asked.bytes),
                                 fits(asked) ? "fits" : "does not fit");
  if (fits(asked)) return text;
  const auto way = std::ranges::find_if(work.ways, fits);
  if (way != work.ways.end())
    return text + fmt::format("; {} fits with {}", format_bytes(way->bytes), way->flags);
  const auto least = std::ranges::min_element(work.ways, {}, &Work::Way::bytes);
  if (!least->flags.empty())
    text += fmt::format("; least with {}: {}", least->flags, format_bytes(least->bytes));
  return text;
}

nlohmann::ordered_json to_json(const MemoryPlan& plan) {
  nlohmann::ordered_json json;
  for (const auto& item : plan.items) json[item.name] = item.bytes;
  json["total"] = plan.total();
  return json;
}

void run_info(const InfoOptions& o) {
  const ModelSource source = open_source(o.common, {.model = o.model});
  if (!source.adapter().empty())
    say(o.common, fmt::format("note: --model {} trained an adapter; this is of its base, {}",
                              o.model, source.name()));
  const ModelConfig& c = source.config();
  const ParameterCount n = count_parameters(c);
  const auto backend = o.gpu > 0 ? nullptr : o.common.open_device();
  const auto planner = backend ? make_planning_backend(backend.get())
                               : make_planning_gpu(static_cast<int64_t>(o.gpu * (1 << 30)));
  const int64_t context = o.context > 0 ? o.context : std::min<int64_t>(c.max_positions, 2048);
  ParameterFormats stored;
  if (backend && !o.common.quantization()) stored = source.stored_formats(*backend, o.common.dtype);
  const auto precision = [&](Purpose purpose, const ParameterFormats& formats) {
    return choose_precision(o.common.dtype, *planner, purpose, c.dtype, formats);
  };
  const Precision inference = precision(Purpose::inference, stored),
                  training = precision(Purpose::training, {}),
                  tuning = precision(Purpose::tuning, stored);
  const auto options_of = [&](const Precision& p, std::optional<ops::WeightFormat> quantization) {
    return Mixtral::Options{.weights = p.weights,
                            .compute = p.compute,
                            .context = context,
                            .quantization = quantization,
                            .formats = stored};
  };
  const auto dense = [](Mixtral::Options options) {
    options.formats.clear();  // weights that are trained are numbers
    return options;
  };
  const auto fitting = [&](std::optional<ops::WeightFormat> quantization) {
    return fit_lone_chunk(*planner,
                          {.config = c,
                           .options = options_of(inference, quantization),
                           .sequences = o.batch_size,
                           .context = context},
                          planner->memory());
  };
  const InferenceShape shape_of_run = fitting(o.common.quantization());
  const MemoryPlan run = plan_inference(*planner, shape_of_run);
  TrainingShape shape{.config = c,
                      .options = dense(options_of(training, std::nullopt)),
                      .objective = {},
                      .optimizer = {},
                      .rows = o.batch_size,
                      .context = context,
                      .recompute = o.recompute};
  shape.optimizer.bf16_state = o.bf16_state;
  const MemoryPlan train = plan_training(*planner, shape);
  shape.options = options_of(tuning, o.common.quantization());
  shape.adapter = new_adapter(
      {.targets = parse_targets(o.targets), .rank = o.rank, .last_layers = o.num_layers}, c);
  const MemoryPlan tune = plan_training(*planner, shape);
  const int64_t limit = memory_limit(planner->memory());
  if (o.common.json) {
    const nlohmann::ordered_json json{{"parameters", n.total},
                                      {"active_parameters", n.active},
                                      {"embedding", n.embedding},
                                      {"attention", n.attention},
                                      {"router", n.router},
                                      {"experts", n.experts},
                                      {"norms", n.norms},
                                      {"head", n.head},
                                      {"inference", to_json(run)},
                                      {"training", to_json(train)},
                                      {"adapter_training", to_json(tune)},
                                      {"available", limit}};
    fmt::print("{}\n", json.dump());
    return;
  }
  // What takes less is planned only where what was asked for does not fit.
  const auto inference_with = [&](std::optional<ops::WeightFormat> quantization) {
    return plan_inference(*planner, fitting(quantization)).total();
  };
  Work generating{"generating", {{"", run.total()}}};
  if (backend) {
    if (const auto streaming =
            find_streaming(*backend, {.model = source}, shape_of_run, planner->memory())) {
      InferenceShape less = shape_of_run;
      less.options.stream_experts = true;
      less.expert_memory = streaming->memory;
      generating.ways.push_back(
          {fmt::format("{} of {} experts in memory, the others {} as they are needed (generate and "
                       "serve do so by themselves)",
                       streaming->memory / streaming->sizes.expert_bytes(),
                       c.num_layers * c.num_experts,
                       streaming->in_host ? "copied from the host's memory" : "read from the disk"),
           plan_inference(*planner, less).total()});
    }
  }
  Work tuning_work{"tuning", {{"", tune.total()}}};
  for (const auto& [flag, quantization] :
       {std::pair("--quantize-base fp8", ops::WeightFormat::fp8),
        std::pair("--quantize-base nf4", ops::WeightFormat::nf4)}) {
    if (o.common.quantization() == quantization) continue;
    if (run.total() > limit) generating.ways.push_back({flag, inference_with(quantization)});
    if (tune.total() <= limit) continue;
    shape.options = options_of(tuning, quantization);
    shape.recompute = o.recompute;
    tuning_work.ways.push_back({flag, plan_training(*planner, shape).total()});
    shape.recompute = Recompute{true, 0};
    tuning_work.ways.push_back(
        {fmt::format("{} --recompute", flag), plan_training(*planner, shape).total()});
  }
  Work training_work{"training", {{"", train.total()}}};
  if (train.total() > limit) {
    TrainingShape less{.config = c,
                       .options = dense(options_of(training, std::nullopt)),
                       .objective = {},
                       .optimizer = {},
                       .rows = o.batch_size,
                       .context = context,
                       .recompute = Recompute{true, 0}};
    training_work.ways.push_back({"--recompute", plan_training(*planner, less).total()});
    less.optimizer.bf16_state = true;
    training_work.ways.push_back(
        {"--recompute --optimizer-state bf16", plan_training(*planner, less).total()});
  }
  fmt::print("{}: {} parameters, {} active for a token\n", o.model, in_short(n.total),
             in_short(n.active));
  fmt::print("{} of memory on {}\n", format_bytes(limit),
             backend ? backend->description() : "a GPU that need not be here");
  for (const Work& work : {generating, tuning_work, training_work})
    fmt::print("{}\n", verdict(work, limit));
  fmt::print("\n{} parameters, {} active\n", with_separators(n.total), with_separators(n.active));
  fmt::print("  embedding {}, attention {}, router {}, experts {}, norms {}, head {}\n",
             with_separators(n.embedding), with_separators(n.attention), with_separators(n.router),
             with_separators(n.experts), with_separators(n.norms), with_separators(n.head));
  fmt::print(
      "  {} layers of width {}, {} query and {} kv heads of {}, {} experts of {}, top-{}, "
      "vocabulary {}\n",
      c.num_layers, c.hidden_size, c.num_heads, c.num_kv_heads, c.head_dim, c.num_experts,
      c.intermediate_size, c.experts_per_token, c.vocab_size);
  fmt::print("\nGenerating, {} sequence(s) of {} tokens, on {}:\n{}", o.batch_size, context,
             planner->name(), run.table());
  fmt::print("\nTraining all weights, {} x {} tokens a step:\n{}", o.batch_size, context,
             train.table());
  const std::string base =
      o.common.quantization() ? fmt::format(" with a base in {}", o.common.quantize_base) : "";
  fmt::print("\nTuning an adapter of rank {} on {}{}, {} x {} tokens a step:\n{}", o.rank,
             o.targets, base, o.batch_size, context, tune.table());
}

}  // namespace

void add_info_command(cli::App& app) {
  auto o = std::make_shared<InfoOptions>();
  cli::App* command =
      app.add_subcommand("info", "A model's parameters, and the memory it needs; loads nothing");
  command->footer(
      "Examples:\n"
      "  mixtral info --model seed --batch-size 1 --context 256 --recompute\n"
      "  mixtral info --model 8x7b --gpu 79 --targets attention --rank 16 --batch-size 4 "
      "--quantize-base nf4\n");
  command->add_option("-m,--model,model", o->model, "A model directory, a run, or a built-in name")
      ->required();
  command
      ->add_option("-c,--context", o->context,
                   "Tokens of a sequence; 0: 2048, or the model's positions if fewer")
      ->capture_default_str()
      ->check(cli::Range(0, 1 << 24));
  command->add_option("--batch-size", o->batch_size, "Sequences at once")
      ->capture_default_str()
      ->check(cli::Range(1, 1 << 20));
  command->add_flag("--recompute", o->recompute, "Plan training with recomputation by block");
  command->add_flag("--bf16-state", o->bf16_state, "Plan training with bf16 optimizer state");
  command
      ->add_option("--targets", o->targets, "Plan tuning of an adapter on these, as for finetune")
      ->capture_default_str();
  command->add_option("--rank", o->rank, "Rank of that adapter")
      ->capture_default_str()
      ->check(cli::Range(1, 1 << 16));
  o->common.add_quantize_base(*command)->description(
      "Plan generating and that tuning with the base in few bits");
  command->add_option("--num-layers", o->num_layers, "It is on the last so many layers; 0: all")
      ->check(at_least(0));
  o->common.add_to(*command);
  // Nothing is drawn, and no rotary table is filled.
  for (const char* meaningless : {"--seed", "--rope-frequencies"})
    command->remove_option(command->get_option(meaningless));
  command
      ->add_option(
          "--gpu", o->gpu,
          "Plan for an NVIDIA card of so many GiB, which need not be here (an H100 has 79, "
          "an H200 139)")
      ->check(between(1, 1e6))
      ->excludes(command->get_option("--device"));
  command->callback([o] { run_info(*o); });
}

}  // namespace mixtral
