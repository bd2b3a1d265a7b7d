#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "cli/evaluate_command.h"
#include "cli/scoring.h"
#include "infer/methods.h"
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
  return s.adapter ? s.adapter->parameters() : s.model->parameters();
}

/// The preference loss of the first batch of pairs, its gradients, and what it is made of.
void run_preference_gradients(const GradientsOptions& o) {
  const Objective objective = o.scoring.objective(model_config(o.scoring.model));
  const PreferenceSettings settings{.loss = parse_preference_loss(o.dpo_loss),
                                    .beta = o.beta,
                                    .label_smoothing = o.label_smoothing,
                                    .objective = objective,
                                    .recompute = o.recompute};
  settings.validate();
  Scoring s = open_scoring(o.scoring, true);
  if (!s.corpus.is_paired())
    throw Error(
        fmt::format("{}: holds no preference pairs, which --method dpo needs", o.scoring.data));
  if (o.reference.empty() && !s.adapter)
    throw UsageError("--method dpo needs --reference DIR, or an --adapter whose base is it");
  std::unique_ptr<Mixtral> reference;
  if (!o.reference.empty()) {
    Mixtral::Options options = s.model->options();
    options.trainable = false;
    reference = load_model(*s.backend, resolve_model(o.reference), options);
    if (reference->config().vocab_size != s.model->config().vocab_size)
      throw Error(fmt::format("--reference {} has a vocabulary of {}, but --model {} one of {}",
                              o.reference, reference->config().vocab_size, o.scoring.model,
                              s.model->config().vocab_size));
  }
  Batches batches(s.corpus, s.batches);
  const auto host = batches.next();
  if (!host) throw Error(fmt::format("{}: holds no record", o.scoring.data));
  PreferenceCriterion criterion(
      *s.ctx, {.policy = *s.model, .adapter = s.adapter.get(), .reference = reference.get()},
      settings);
  const StepSize step{.weight = criterion.weight(*host), .batches = 1};
  criterion.begin(*s.ctx, 0);
  criterion.add_gradients(*s.ctx, *host, step, 0);
  const Figures figures = criterion.read(*s.ctx, 0, step);
  if (!o.out.empty()) save_gradients(*s.backend, tuned_parameters(s), o.out);
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
  Scoring s = open_scoring(o.scoring, true);
  if (s.corpus.is_paired())
    throw Error(fmt::format("{}: holds preference pairs; add --method dpo", o.scoring.data));
  Batches batches(s.corpus, s.batches);
  const auto host = batches.next();
  if (!host) throw Error(fmt::format("{}: holds no record", o.scoring.data));
  const int64_t labels = host->label_count();
  if (labels == 0) throw Error(fmt::format("{}: no label to learn in the batch", o.scoring.data));
  const Objective objective = o.scoring.objective(s.model->config());
  Context& ctx = *s.ctx;
  const LossTotals totals = LossTotals::allocate(ctx);
  const Tensor scale = ctx.allocate({1}, ctx.statistics());
  ctx.run(ops::Fill{.x = scale, .value = 1 / static_cast<double>(labels)});
  const Batch batch = upload(ctx, *host, s.model->config().vocab_size, s.model->context());
  accumulate_gradients(ctx, *s.model, batch, objective,
                       {.label_scale = scale, .recompute = o.recompute}, totals, nullptr);
  const LossValues losses = read(ctx, totals, objective, labels);
  if (!o.out.empty()) save_gradients(*s.backend, tuned_parameters(s), o.out);
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

struct RouteOptions {
  CommonOptions common;
  std::string model, tokenizer, prompt, ids;
};

void run_route(const RouteOptions& o) {
  const auto tokenizer = open_tokenizer(o.tokenizer, o.model);
  std::vector<int32_t> ids;
  if (!o.ids.empty()) {
    ids = parse_ids("--ids", o.ids);
  } else {
    if (!tokenizer) throw UsageError("the model has no tokenizer; give --tokenizer or --ids");
    ids = prompt_tokens(*tokenizer, o.prompt);
  }
  if (ids.empty()) throw UsageError("there is no token to route; give --prompt or --ids");
  const auto backend = o.common.open_device();
  const ModelConfig config = model_config(o.model);
  const Precision precision =
      choose_precision(o.common.dtype, *backend, Purpose::inference, config.dtype);
  const auto model = open_model(*backend, o.model,
                                {.weights = precision.weights,
                                 .compute = precision.compute,
                                 .context = static_cast<int64_t>(ids.size()),
                                 .rope_frequencies = o.common.rope_dtype()},
                                o.common.seed);
  Arena arena(*backend);
  Context ctx(*backend, arena, precision.compute);
  HostBatch host;
  host.append(ids);
  Mixtral::Saved saved;
  model->forward(ctx, upload(ctx, host, config.vocab_size, model->context()), nullptr, &saved,
                 nullptr);
  const auto k = static_cast<size_t>(config.experts_per_token);
  std::vector<std::vector<int32_t>> experts;
  std::vector<std::vector<float>> weights;
  for (const auto& block : saved.blocks) {
    auto& e = experts.emplace_back(ids.size() * k);
    auto& w = weights.emplace_back(ids.size() * k);
    backend->download(block.experts.expert,
                      Tensor(e.data(), block.experts.expert.shape(), Dtype::i32));
    if (ctx.statistics() == Dtype::f32) {
      backend->download(block.experts.weights,
                        Tensor(w.data(), block.experts.weights.shape(), Dtype::f32));
    } else {
      std::vector<double> wide(w.size());
      backend->download(block.experts.weights,
                        Tensor(wide.data(), block.experts.weights.shape(), Dtype::f64));
      std::copy(wide.begin(), wide.end(), w.begin());
    }
  }
  auto label = [&](int32_t id) {
    return tokenizer && id < tokenizer->vocab_size() ? tokenizer->label(id) : std::to_string(id);
  };
  if (o.common.json) {
    ordered_json json = ordered_json::array();
    for (size_t n = 0; n < ids.size(); ++n) {
      ordered_json layers = ordered_json::array();
      for (size_t l = 0; l < experts.size(); ++l) {
        ordered_json chosen = ordered_json::array();
        for (size_t j = 0; j < k; ++j)
          chosen.push_back({{"expert", experts[l][n * k + j]}, {"weight", weights[l][n * k + j]}});
        layers.push_back(chosen);
      }
      json.push_back({{"id", ids[n]}, {"token", label(ids[n])}, {"layers", layers}});
    }
    fmt::print("{}\n", json.dump(-1, ' ', false, ordered_json::error_handler_t::replace));
    return;
  }
  fmt::print("{:>6}  {:<16}  experts of each layer, the heavier first\n", "id", "token");
  for (size_t n = 0; n < ids.size(); ++n) {
    fmt::print("{:>6}  {:<16}", ids[n], label(ids[n]));
    for (const auto& layer : experts) {
      fmt::print("  {}", fmt::join(layer.begin() + static_cast<std::ptrdiff_t>(n * k),
                                   layer.begin() + static_cast<std::ptrdiff_t>((n + 1) * k), "+"));
    }
    fmt::print("\n");
  }
}

}  // namespace

void add_inspect_command(CLI::App& app) {
  CLI::App* inspect = app.add_subcommand("inspect", "Look inside a model: gradients, routing");
  inspect->require_subcommand(1);
  {
    auto o = std::make_shared<GradientsOptions>();
    CLI::App* command = inspect->add_subcommand(
        "gradients", "Every parameter's gradient for the first batch of some data");
    o->scoring.add_to(*command, "off");
    command->add_option("--out", o->out, "Write them to this .safetensors, under on-disk names");
    command->add_flag("--recompute", o->recompute, "Recompute each block in the backward pass");
    command
        ->add_option("--method", o->method,
                     "lm: next-token prediction; dpo: preference pairs, against a reference")
        ->capture_default_str()
        ->check(CLI::IsMember({"lm", "dpo"}));
    command->add_option("--reference", o->reference,
                        "dpo: the reference model (default: the base, with --adapter off)");
    command->add_option("--beta", o->beta, "dpo: how strongly the reference holds")
        ->capture_default_str();
    command
        ->add_option("--label-smoothing", o->label_smoothing,
                     "dpo: share of pairs taken to be labelled wrongly")
        ->capture_default_str();
    command->add_option("--dpo-loss", o->dpo_loss, "dpo: sigmoid, normalized or ipo")
        ->capture_default_str()
        ->check(CLI::IsMember({"sigmoid", "normalized", "ipo"}));
    command->callback([o, command] {
      if (o->method == "lm") return run_gradients(*o);
      if (command->count("--aux-loss") == 0) o->scoring.aux_loss = "off";
      run_preference_gradients(*o);
    });
  }
  auto o = std::make_shared<RouteOptions>();
  CLI::App* command =
      inspect->add_subcommand("route", "Which experts each token of a text goes to");
  command->add_option("-m,--model", o->model, "A model directory or a run")->required();
  command->add_option("--tokenizer", o->tokenizer, "Another tokenizer than the model's own");
  command->add_option("-p,--prompt", o->prompt, "The text");
  command->add_option("--ids", o->ids, "The text as token ids: 5,7,9");
  o->common.add_to(*command);
  command->callback([o] { run_route(*o); });
}

}  // namespace mixtral
