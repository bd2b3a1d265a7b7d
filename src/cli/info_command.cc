#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "backends/registry.h"
#include "cli/common.h"
#include "cli/evaluate_command.h"
#include "train/memory_plan.h"

namespace mixtral {
namespace {

struct InfoOptions {
  CommonOptions common;
  std::string model;
  int64_t context = 0, batch_size = 1;
  bool recompute = false, bf16_state = false;
};

nlohmann::ordered_json to_json(const MemoryPlan& plan) {
  nlohmann::ordered_json json;
  for (const auto& item : plan.items) json[item.name] = item.bytes;
  json["total"] = plan.total();
  return json;
}

void run_info(const InfoOptions& o) {
  const ModelConfig c = model_config(o.model);
  const ParameterCount n = count_parameters(c);
  const auto backend = o.common.open_device();
  const auto planner = make_planning_backend(backend.get());
  const int64_t context = o.context > 0 ? o.context : std::min<int64_t>(c.max_positions, 2048);
  const Precision inference =
      choose_precision(o.common.dtype, *backend, Purpose::inference, c.dtype);
  const Precision training = choose_precision(o.common.dtype, *backend, Purpose::training, c.dtype);
  const MemoryPlan run = plan_inference(
      *planner,
      {.config = c,
       .options = {.weights = inference.weights, .compute = inference.compute, .context = context},
       .sequences = o.batch_size,
       .context = context,
       .chunk = std::min<int64_t>(context, 256)});
  OptimizerSettings optimizer;
  optimizer.bf16_state = o.bf16_state;
  const MemoryPlan train = plan_training(*planner, {.config = c,
                                                    .options = {.weights = training.weights,
                                                                .compute = training.compute,
                                                                .context = context,
                                                                .trainable = true},
                                                    .objective = {},
                                                    .optimizer = optimizer,
                                                    .rows = o.batch_size,
                                                    .context = context,
                                                    .recompute = o.recompute});
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
                                      {"available", backend->memory().available}};
    fmt::print("{}\n", json.dump());
    return;
  }
  fmt::print("{} parameters, {} active for a token\n", n.total, n.active);
  fmt::print("  embedding {}, attention {}, router {}, experts {}, norms {}, head {}\n",
             n.embedding, n.attention, n.router, n.experts, n.norms, n.head);
  fmt::print(
      "  {} layers of width {}, {} query and {} kv heads of {}, {} experts of {}, top-{}, "
      "vocabulary {}\n",
      c.num_layers, c.hidden_size, c.num_heads, c.num_kv_heads, c.head_dim, c.num_experts,
      c.intermediate_size, c.experts_per_token, c.vocab_size);
  fmt::print("\nGenerating, {} sequence(s) of {} tokens, on {}:\n{}", o.batch_size, context,
             backend->name(), run.table());
  fmt::print("\nTraining all weights, {} x {} tokens a step:\n{}", o.batch_size, context,
             train.table());
  fmt::print("\n{} available on {}\n", format_bytes(backend->memory().available),
             backend->description());
}

}  // namespace

void add_info_command(CLI::App& app) {
  auto o = std::make_shared<InfoOptions>();
  CLI::App* command =
      app.add_subcommand("info", "A model's parameters, and the memory it needs; loads nothing");
  command->footer("Example: mixtral info --model seed --batch-size 1 --context 256 --recompute\n");
  command->add_option("-m,--model", o->model, "A model directory, a run, or a built-in name")
      ->required();
  command->add_option("-c,--context", o->context, "Tokens of a sequence")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--batch-size", o->batch_size, "Sequences at once")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 20));
  command->add_flag("--recompute", o->recompute, "Plan training with recomputation by block");
  command->add_flag("--bf16-state", o->bf16_state, "Plan training with bf16 optimizer state");
  o->common.add_to(*command);
  command->callback([o] { run_info(*o); });
}

}  // namespace mixtral
