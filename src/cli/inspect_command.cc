#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "cli/evaluate_command.h"
#include "cli/inspect_experts.h"
#include "cli/inspect_template.h"
#include "cli/scoring.h"
#include "model/checkpoint.h"
#include "train/preference.h"

namespace mixtral {
namespace {

using nlohmann::ordered_json;

struct GradientsOptions {
  ScoringOptions scoring;
  std::string out, method = "lm", reference, dpo_loss = "sigmoid";
  double beta = 0.1, label_smoothing = 0;
  bool recompute = false;
};

nn::ParameterSource tuned_parameters(const Scoring& s) {
  return s.open.adapter ? s.open.adapter->parameters() : s.open.model->parameters();
}

/// The preference loss of the first batch of pairs, its gradients, and what it is made of.
void run_preference_gradients(const GradientsOptions& o) {
  const ModelSource source =
      open_source(o.scoring.common, {o.scoring.model, o.scoring.adapter, o.scoring.tokenizer});
  const Objective objective = o.scoring.objective(source.config());
  const PreferenceSettings settings{.loss = parse_preference_loss(o.dpo_loss),
                                    .beta = o.beta,
                                    .label_smoothing = o.label_smoothing,
                                    .objective = objective,
                                    .recompute = o.recompute};
  settings.validate();
  Scoring s = open_scoring(o.scoring, source,
                           {.pass = Pass::gradients,
                            .recompute = o.recompute,
                            .preference = settings,
                            .reference_model = !o.reference.empty() || source.adapter().empty()});
  if (!s.corpus.is_paired())
    throw Error(
        fmt::format("{}: holds no preference pairs, which --method dpo needs", o.scoring.data));
  if (o.reference.empty() && !s.open.adapter)
    throw UsageError("--method dpo needs --reference DIR, or an --adapter whose base is it");
  std::unique_ptr<Mixtral> reference;
  if (!o.reference.empty()) {
    Mixtral::Options options = s.open.model->options();
    options.trainable = false;
    const ModelSource other =
        open_source(o.scoring.common, {.model = o.reference, .setting = "reference"});
    other.refuse_adapter();
    reference = open_weights(*s.open.backend, other, options, {}, {});
    if (reference->config().vocab_size != s.open.model->config().vocab_size)
      throw Error(fmt::format("--reference {} has a vocabulary of {}, but --model {} one of {}",
                              o.reference, reference->config().vocab_size, o.scoring.model,
                              s.open.model->config().vocab_size));
  }
  Batches batches(s.corpus, s.batches);
  const auto host = batches.next();
  if (!host) throw Error(fmt::format("{}: holds no record", o.scoring.data));
  PreferenceCriterion criterion(
      *s.open.ctx,
      {.policy = *s.open.model, .adapter = s.open.adapter.get(), .reference = reference.get()},
      settings);
  const StepSize step{.weight = criterion.weight(*host), .batches = 1};
  criterion.begin(*s.open.ctx, 0);
  criterion.add_gradients(*s.open.ctx, *host, step, 0);
  const Figures figures = criterion.read(*s.open.ctx, 0, step);
  if (!o.out.empty()) save_gradients(*s.open.backend, tuned_parameters(s), o.out);
  ordered_json json{{"loss", figures.loss}, {"preference_loss", figures.cross_entropy}};
  for (const auto& [name, value] : figures.more) json[name] = value;
  json["aux_loss"] = figures.aux;
  json["rows"] = ordered_json::array();
  for (const PairLogProbabilities& pair : criterion.last_pairs()) {
    const PairLoss loss = pair_loss(settings, pair);
    json["rows"].push_back({{"policy_chosen", pair.policy_chosen},
                            {"policy_rejected", pair.policy_rejected},
                            {"reference_chosen", pair.reference_chosen},
                            {"reference_rejected", pair.reference_rejected},
                            {"margin", loss.margin()},
                            {"loss", loss.loss}});
  }
  if (o.scoring.common.json) {
    fmt::print("{}\n", json.dump());
    return;
  }
  fmt::print("loss {:.6f}; margin {:.4f}, accuracy {:.1f}% of {} pairs\n", figures.loss,
             figures.more[0].second, 100 * figures.more[1].second, step.weight);
  fmt::print("{:>16} {:>16} {:>16} {:>16} {:>10} {:>10}\n", "policy chosen", "policy rejected",
             "ref. chosen", "ref. rejected", "margin", "loss");
  for (const PairLogProbabilities& pair : criterion.last_pairs()) {
    const PairLoss loss = pair_loss(settings, pair);
    fmt::print("{:>16.4f} {:>16.4f} {:>16.4f} {:>16.4f} {:>10.4f} {:>10.4f}\n", pair.policy_chosen,
               pair.policy_rejected, pair.reference_chosen, pair.reference_rejected, loss.margin(),
               loss.loss);
  }
}

void run_gradients(const GradientsOptions& o) {
  Scoring s = open_scoring(o.scoring, {.pass = Pass::gradients, .recompute = o.recompute});
  if (s.corpus.is_paired())
    throw Error(fmt::format("{}: holds preference pairs; add --method dpo", o.scoring.data));
  Batches batches(s.corpus, s.batches);
  const auto host = batches.next();
  if (!host) throw Error(fmt::format("{}: holds no record", o.scoring.data));
  const int64_t labels = host->label_count();
  if (labels == 0) throw Error(fmt::format("{}: no label to learn in the batch", o.scoring.data));
  const Objective objective = o.scoring.objective(s.open.model->config());
  Context& ctx = *s.open.ctx;
  const LossTotals totals = LossTotals::allocate(ctx);
  const Tensor scale = ctx.allocate({1}, ctx.statistics());
  ctx.run(ops::Fill{.x = scale, .value = 1 / static_cast<double>(labels)});
  const Batch batch =
      upload(ctx, *host, s.open.model->config().vocab_size, s.open.model->context());
  accumulate_gradients(ctx, *s.open.model, batch, objective,
                       {.label_scale = scale, .recompute = o.recompute}, totals, nullptr);
  const LossValues losses = read(ctx, totals, objective, labels);
  if (!o.out.empty()) save_gradients(*s.open.backend, tuned_parameters(s), o.out);
  const ordered_json json{{"loss", losses.total},   {"cross_entropy", losses.cross_entropy},
                          {"aux_loss", losses.aux}, {"z_loss", losses.z},
                          {"tokens", labels},       {"rows", host->sequences()}};
  if (o.scoring.common.json) {
    fmt::print("{}\n", json.dump());
    return;
  }
  fmt::print("loss {:.6f}: cross-entropy {:.6f}, balance {:.6f}, z {:.6f}; {} labels\n",
             losses.total, losses.cross_entropy, losses.aux, losses.z, labels);
}

}  // namespace

void add_inspect_command(cli::App& app) {
  cli::App* inspect =
      app.add_subcommand("inspect", "Look inside: gradients, routing, experts, templates");
  inspect->require_subcommand(1);
  inspect->footer(
      "Examples:\n"
      "  mixtral inspect experts --model runs/first --data data/pretrain_data --split test\n"
      "  mixtral inspect route --model runs/first --prompt \"Mia has the red kite.\"\n"
      "  mixtral inspect gradients --model runs/first --data data/pretrain_data\n");
  {
    auto o = std::make_shared<GradientsOptions>();
    cli::App* command = inspect->add_subcommand(
        "gradients", "Every parameter's gradient for the first batch of some data");
    command->footer(
        "Examples:\n"
        "  mixtral inspect gradients --model runs/first --data data/pretrain_data --out "
        "g.safetensors\n"
        "  mixtral inspect gradients --model runs/first --adapter runs/qa --data "
        "data/finetune_data\n"
        "  mixtral inspect gradients --model runs/qa --data data/preference_data --method dpo\n");
    o->scoring.add_to(*command, "off");
    command->add_option("--out", o->out, "Write them to this .safetensors, under on-disk names");
    command->add_flag("--recompute", o->recompute, "Recompute each block in the backward pass");
    command
        ->add_option("--method", o->method,
                     "lm: next-token prediction; dpo: preference pairs, against a reference")
        ->capture_default_str()
        ->check(cli::IsMember({"lm", "dpo"}));
    command->add_option("--reference", o->reference,
                        "dpo: the reference model (default: --model without the --adapter)");
    command->add_option("--beta", o->beta, "dpo: how strongly the reference holds")
        ->capture_default_str();
    command
        ->add_option("--label-smoothing", o->label_smoothing,
                     "dpo: assumed fraction of mislabelled pairs")
        ->capture_default_str();
    command->add_option("--dpo-loss", o->dpo_loss, "dpo: sigmoid, normalized or ipo")
        ->capture_default_str()
        ->check(cli::IsMember({"sigmoid", "normalized", "ipo"}));
    command->callback([o, command] {
      if (o->method == "lm") return run_gradients(*o);
      if (command->count("--aux-loss") == 0) o->scoring.aux_loss = "off";
      run_preference_gradients(*o);
    });
  }
  add_inspect_route(*inspect);
  add_inspect_experts(*inspect);
  add_inspect_template(*inspect);
}

}  // namespace mixtral
