#include "cli/experts_command.h"

#include <memory>
#include <vector>

#include "backends/registry.h"
#include "cli/experts_output.h"
#include "surgery/expert_plans.h"

namespace mixtral {
namespace {

// Tokens of a layer that go through every expert, for the experts' mean outputs.
constexpr int64_t kOutputTokens = 512;

struct UpcycleOptions : ExpertsOptions {
  int64_t experts = 0, per_token = 2;
  CopyNoise noise;
};

struct PruneOptions : ExpertsOptions {
  int64_t keep = 0;
  std::string by = "reap";
};

struct MergeExpertsOptions : ExpertsOptions {
  int64_t into = 0;
};

struct AddOptions : ExpertsOptions {
  int64_t count = 0;
  std::vector<int64_t> from;
  CopyNoise noise{.deviation = 0.01};
};

struct GraftCommandOptions : ExpertsOptions {
  std::string base;
  std::vector<std::string> models, prompts;
  int64_t per_token = 2;
};

void add_data(cli::App& command, ExpertsOptions& o) {
  command.add_option("--data", o.data,
                     "Text to measure perplexity on, before and after: .jsonl records, or .txt");
}

void add_data_that_decides(cli::App& command, ExpertsOptions& o) {
  command
      .add_option("--data", o.data,
                  "Text that decides, and that perplexity is measured on: .jsonl records, or .txt")
      ->required();
}

void add_seed(cli::App& command, uint64_t& seed) {
  command.add_option("-s,--seed", seed, "Seed of everything random")->capture_default_str();
}

void add_noise(cli::App& command, CopyNoise& noise) {
  command
      .add_option("--noise", noise.deviation,
                  "Noise on the copies, as a share of each matrix's root mean square")
      ->capture_default_str()
      ->check(cli::Range(0.0, 100.0));
  command
      .add_option("--noise-share", noise.share,
                  "Share of a copy's numbers that the noise is added to")
      ->capture_default_str()
      ->check(cli::Range(0.0, 1.0));
}

void run_upcycle(const UpcycleOptions& o) {
  const ModelSource source = open_expert_source(o, {.model = o.model, .dense = true});
  run_surgery(o, plan_upcycle(source, o.experts, o.per_token, o.noise));
}

ExpertStatistics statistics_of(const ExpertsOptions& o, const ModelSource& source,
                               int64_t output_tokens) {
  const auto backend = make_backend("cpu", o.common.threads);
  return gather_statistics(*backend, source, sample_text(source, o.data, o.sample()),
                           {.output_tokens = output_tokens});
}

void run_prune(const PruneOptions& o) {
  const ModelSource source = open_expert_source(o, {.model = o.model});
  require_fewer_experts(source.config(), "keep", o.keep);
  const ExpertStatistics statistics = statistics_of(o, source, 0);
  const PruneBy by = o.by == "load" ? PruneBy::load : PruneBy::reap;
  run_surgery(o, plan_prune(source, statistics, o.keep, by), &statistics);
}

void run_merge_experts(const MergeExpertsOptions& o) {
  const ModelSource source = open_expert_source(o, {.model = o.model});
  require_fewer_experts(source.config(), "into", o.into);
  const ExpertStatistics statistics = statistics_of(o, source, kOutputTokens);
  run_surgery(o, plan_merge(source, statistics, o.into), &statistics);
}

void run_add(const AddOptions& o) {
  const ModelSource source = open_expert_source(o, {.model = o.model});
  run_surgery(o, plan_add(source, o.count, o.from, o.noise));
}

void run_graft(const GraftCommandOptions& o) {
  if (!o.prompts.empty() && o.prompts.size() != o.models.size())
    throw UsageError("--prompts: give one file for each --model, in the same order, or none");
  const ModelSource base =
      open_expert_source(o, {.model = o.base, .setting = "base", .dense = true});
  std::vector<std::unique_ptr<ModelSource>> opened;
  std::vector<const ModelSource*> models;
  for (const std::string& model : o.models) {
    opened.push_back(
        std::make_unique<ModelSource>(open_expert_source(o, {.model = model, .dense = true})));
    models.push_back(opened.back().get());
  }
  GraftOptions options{.per_token = o.per_token, .seed = o.common.seed, .prompts = {}};
  const auto backend = make_backend("cpu", o.common.threads);
  for (const std::string& file : o.prompts)
    options.prompts.push_back(mean_router_inputs(
        *backend, base, read_prompts(base, file, o.tokens, o.context, o.common.threads)));
  run_surgery(o, plan_graft(base, models, options));
}

void add_upcycle(cli::App& parent) {
  auto o = std::make_shared<UpcycleOptions>();
  cli::App* command = parent.add_subcommand(
      "upcycle", "A dense model's MLP as each of N experts: a Mixtral to train on");
  command->footer(
      "The model has Mistral's or Llama's architecture, in Hugging Face's files. Routers are "
      "drawn\n"
      "from the seed. Without --noise the result computes what the dense model does.\n"
      "Example: mixtral experts upcycle --model DENSE --experts 8 --out models/upcycled\n"
      "         mixtral experts upcycle --model DENSE --experts 8 --noise 0.05 --out DIR\n");
  command->add_option("-m,--model", o->model, "The dense model's directory")->required();
  command->add_option("--experts", o->experts, "Experts in each layer")->required();
  command->add_option("--top-k", o->per_token, "Experts that a token goes to")
      ->capture_default_str();
  add_noise(*command, o->noise);
  add_data(*command, *o);
  o->add_to(*command);
  add_seed(*command, o->noise.seed);
  command->callback([o] { run_upcycle(*o); });
}

void add_prune(cli::App& parent) {
  auto o = std::make_shared<PruneOptions>();
  cli::App* command =
      parent.add_subcommand("prune", "Leave out the experts of each layer that a text needs least");
  command->footer(
      "Each layer keeps as many, because a Mixtral has one number of experts; a token goes to as\n"
      "many as before where so many are left. reap: the mean of the router's weight times the "
      "norm\n"
      "of the expert's output, over the tokens that chose it. load: their number.\n"
      "Example: mixtral experts prune --model DIR --keep 4 --data text.jsonl --out models/half\n"
      "         mixtral experts prune --model m.gguf --keep 6 --by load --data t.txt --out DIR\n");
  command->add_option("-m,--model", o->model, "The model: a directory, a .gguf file or a run")
      ->required();
  command->add_option("--keep", o->keep, "Experts that each layer keeps")->required();
  command->add_option("--by", o->by, "What decides: reap or load")
      ->capture_default_str()
      ->check(cli::IsMember({"reap", "load"}));
  add_data_that_decides(*command, *o);
  o->add_to(*command);
  command->callback([o] { run_prune(*o); });
}

void add_merge(cli::App& parent) {
  auto o = std::make_shared<MergeExpertsOptions>();
  cli::App* command =
      parent.add_subcommand("merge", "Join the experts of each layer that do alike on a text");
  command->footer(
      "Experts are grouped by their mean outputs (average linkage). A group's experts and their\n"
      "routers' rows become their mean, weighted by how many tokens chose each.\n"
      "Example: mixtral experts merge --model DIR --into 4 --data text.jsonl --out models/joined\n"
      "         mixtral experts merge --model DIR --into 6 --data t.txt --type bf16 --out DIR\n");
  command->add_option("-m,--model", o->model, "The model: a directory, a .gguf file or a run")
      ->required();
  command->add_option("--into", o->into, "Experts that each layer is left with")->required();
  add_data_that_decides(*command, *o);
  o->add_to(*command);
  command->callback([o] { run_merge_experts(*o); });
}

void add_add(cli::App& parent) {
  auto o = std::make_shared<AddOptions>();
  cli::App* command = parent.add_subcommand("add", "More experts in each layer: copies with noise");
  command->footer(
      "A copy's router row is the original's, with noise of the same share. So a copy is chosen\n"
      "beside its original, and takes a place among the chosen that another expert had.\n"
      "Example: mixtral experts add --model DIR --count 8 --out models/sixteen\n"
      "         mixtral experts add --model DIR --count 2 --from 3,5 --noise 0.05 --out DIR\n");
  command->add_option("-m,--model", o->model, "The model: a directory, a .gguf file or a run")
      ->required();
  command->add_option("--count", o->count, "Experts to add to each layer")->required();
  command
      ->add_option("--from,--copy-of", o->from,
                   "Experts to copy in turn, such as 3,5; otherwise all")
      ->delimiter(',');
  add_noise(*command, o->noise);
  add_data(*command, *o);
  o->add_to(*command);
  add_seed(*command, o->noise.seed);
  command->callback([o] { run_add(*o); });
}

void add_graft(cli::App& parent) {
  auto o = std::make_shared<GraftCommandOptions>();
  cli::App* command =
      parent.add_subcommand("graft", "The experts of several fine-tunes of one base in one model");
  command->footer(
      "Attention, norms, embedding and head are the base's. A dense model (Mistral's or Llama's\n"
      "architecture) gives its MLP, a Mixtral all of its experts with their routers' rows. Of "
      "dense\n"
      "models, --prompts tells the routers which texts are whose; without, routers are drawn.\n"
      "Example: mixtral experts graft --base BASE --model A --model B --prompts a.txt --prompts "
      "b.txt --out DIR\n"
      "         mixtral experts graft --base BASE --model A --model B --out DIR\n");
  command->add_option("--base", o->base, "The model that the others were tuned from")->required();
  command->add_option("-m,--model", o->models, "A model whose experts to take; may be repeated")
      ->required();
  command->add_option("--prompts", o->prompts,
                      "Texts that the model's expert is for; one file for each --model, in order");
  command->add_option("--top-k", o->per_token, "Experts that a token goes to")
      ->capture_default_str();
  add_data(*command, *o);
  o->add_to(*command);
  add_seed(*command, o->common.seed);
  command->callback([o] { run_graft(*o); });
}

}  // namespace

void add_experts_command(cli::App& app) {
  cli::App* command = app.add_subcommand("experts", "Make a model of others' experts");
  command->require_subcommand(1);
  command->footer(
      "Each reads its models matrix by matrix, writes one that every tool opens, with a receipt,\n"
      "and prints perplexity before and after on --data.\n"
      "Examples:\n"
      "  mixtral experts upcycle --model DENSE --experts 8 --out models/upcycled\n"
      "  mixtral experts prune --model DIR --keep 4 --data text.jsonl --out models/half\n"
      "  mixtral experts merge --model DIR --into 4 --data text.jsonl --out models/joined\n");
  add_upcycle(*command);
  add_prune(*command);
  add_merge(*command);
  add_add(*command);
  add_graft(*command);
}

}  // namespace mixtral
