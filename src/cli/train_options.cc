#include "cli/train_options.h"

#include <fmt/format.h>

#include <cmath>
#include <filesystem>

namespace mixtral {
namespace {

namespace fs = std::filesystem;

OnResume same_data() {
  return OnResume::run("the checkpoint's place in the data was counted with it");
}

}  // namespace

Recompute recompute_rule(bool recompute, int64_t keep_layers) {
  if (keep_layers > 0 && !recompute)
    throw UsageError(fmt::format(
        "--keep-layers {} says which layers --recompute leaves out; give --recompute too",
        keep_layers));
  return {recompute, keep_layers};
}

bool records_steps(std::string_view graph, const Backend& backend) {
  return graph == "on" || (graph == "auto" && backend.runs_behind());
}

void TrainOptions::add_data(RunConfig& config) {
  config.group("Data");
  config.add("--data", data,
             "Directory with train.jsonl and, where there are, val.jsonl and test.jsonl (or .txt), "
             "a folder of .txt and .md files, or one file. Lines: {\"text\"}, {\"messages\"}, "
             "{\"prompt\",\"completion\"} or "
             "{\"input_ids\",\"labels\"}",
             OnResume::unnoticed());
  config.add("--tokenizer", tokenizer,
             "tokenizer.model, a directory with one, or bytes / bytes-256; default: the model's "
             "own. Not needed for input_ids",
             OnResume::run("the model was trained on its ids"));
  config
      .add("-c,--context", context,
           "Tokens of a row (default: 256 or the model's positions; with --pack off or preference "
           "pairs, all of them)",
           same_data())
      ->check(count_between(1, kMostContext));
  config.add("-b,--batch-size", batch_size, "Rows of a micro-batch", same_data())
      ->check(count_between(1, kMostRows));
  config
      .add("--pack", pack,
           "on: whole documents share rows; fill: rows are full, documents are cut where one ends; "
           "off: a record a row, cut off at --context. Attention never crosses documents",
           same_data())
      ->check(cli::IsMember({"on", "fill", "off"}));
  config
      .add("--shuffle", shuffle, "on: a new order in each epoch; off: in file order", same_data())
      ->check(on_off());
  config
      .add("--windows", windows,
           "documents: each once an epoch; random: --context tokens from anywhere in the text, as "
           "suits one long text",
           same_data())
      ->check(cli::IsMember({"documents", "random"}));
  config
      .add("--val-fraction", validation_fraction,
           "Share of one file, or of a folder of texts, that is kept for validation: the end of a "
           "text, or records evenly spread",
           same_data())
      ->check(between(0, 0.9));
  config.add("--mask-prompt", mask_prompt,
             "For {\"text\"} records, train only on what follows the last response marker",
             same_data());
  config.add("--response-marker", response_marker, "What --mask-prompt looks for", same_data());
  config.add("--token-cache", token_cache,
             "Keep the tokens beside the data, for later runs (.mixtral-cache)",
             OnResume::command_line("because it writes beside the data"));
}

void TrainOptions::add_optimization(RunConfig& config) {
  config.group("Optimization");
  config
      .add("--iters", iterations, fmt::format("Optimizer steps (default: {})", default_iterations))
      ->check(at_least(1));
  config.add("--epochs", epochs, "The same as passes over the data")
      ->check(between(1e-6, 1e6))
      ->excludes("--iters");
  config
      .add("--grad-accumulation", accumulation,
           "Micro-batches of a step: a larger batch in the same memory", same_data())
      ->check(count_between(1, kMostRows));
  config.add("--lr,--learning-rate", lr, "Peak learning rate (default: by the model's width)");
  config
      .add("--schedule", schedule,
           "After the warm-up: wsd (stable, then decay), cosine, or constant")
      ->check(cli::IsMember({"cosine", "constant", "wsd"}));
  config.add("--warmup", warmup, "Steps until the peak (default: a tenth, at most 100)");
  config.add("--min-lr", min_lr,
             "Final learning rate (default: 0 for wsd, a tenth of --lr for cosine)");
  config.add("--decay-fraction", decay_fraction, "Share of the steps in which wsd decays");
  config.add("--beta1", beta1, "AdamW's decay of the mean");
  config.add("--beta2", beta2, "AdamW's decay of the second moment");
  config.add("--adam-eps", adam_eps, "AdamW's epsilon");
  config.add("--weight-decay", weight_decay, "Decoupled decay, of matrices only");
  config.add("--grad-clip", grad_clip, "Largest gradient norm; 0: no clipping");
  config
      .add("--aux-loss", aux_loss,
           "Load-balancing loss: per-layer, hf (transformers' formula, which pools layers), off")
      ->check(cli::IsMember({"per-layer", "hf", "off"}));
  config.add("--aux-coef", aux_coefficient, "Its coefficient (default: the model's, 0.02)")
      ->check(between(0, 1000));
  config.add("--z-coef", z_coefficient, "Coefficient of the router z-loss")
      ->check(between(0, 1000));
  config
      .add("--optimizer-state", optimizer_state,
           "fp32, or bf16: half the memory of the moments, stochastically rounded",
           OnResume::run("the checkpoint's optimizer state has it"))
      ->check(cli::IsMember({"fp32", "bf16"}));
  config.add("--recompute", recompute,
             "Recompute activations in the backward pass: less memory, a third slower",
             OnResume::unnoticed());
  config
      .add("--keep-layers", keep_layers,
           "With --recompute: the last so many layers keep their activations, and their speed",
           OnResume::unnoticed())
      ->check(at_least(0));
}

void TrainOptions::add_run(cli::App& app, RunConfig& config) {
  config.group("Run");
  config.add("-o,--out", out, "Run directory: configuration, metrics, plots, checkpoints",
             OnResume::unnoticed());
  app.add_option(
         "--resume", resume,
         "Continue a run, bit for bit, from its newest whole checkpoint (of this directory, "
         "or of --out)")
      ->expected(0, 1)
      ->group("Run");
  app.add_flag("--overwrite", overwrite, "Replace the run that --out holds")->group("Run");
  app.add_option("--config", config_path, "YAML file with flags' names as keys; flags beat it")
      ->group("Run");
  app.add_flag("--dump-config", dump_config, "Print the effective configuration as YAML, and end")
      ->group("Run");
  auto count = [&](const std::string& flags, auto& value, const std::string& help, int64_t least,
                   const OnResume& rule = OnResume::unnoticed()) {
    config.add(flags, value, help, rule)->check(at_least(least));
  };
  count("--log-every", log_every, "Steps between lines of metrics.jsonl", 1, OnResume::flag());
  count("--eval-every", eval_every,
        "Steps between validations (default: a tenth of the run, 50 to 1000)", 0, OnResume::flag());
  count("--eval-batches", eval_batches, "Batches of a validation; 0: the whole split", 0,
        OnResume::flag());
  count("--save-every", save_every, "Steps between checkpoints (default: as --eval-every)", 0);
  count("--keep-last", keep_last, "Checkpoints that are kept", 1);
  config
      .add("--keep-best", keep_best, "Save each best validation, and keep it",
           OnResume::unnoticed())
      ->check(on_off());
  count("--patience", patience, "Stop after so many validations without a new best; 0: never", 0);
  count("--max-skipped", max_skipped,
        "Stop after so many steps in a row whose loss or gradient was not finite", 1);
  config.add("--graph", graph, kGraphHelp, OnResume::unnoticed())
      ->check(cli::IsMember({"auto", "on", "off"}));
  config.add("--tensorboard", tensorboard,
             "Also write the metrics as TensorBoard events, to the run's tensorboard/",
             OnResume::unnoticed());
  config.add("--sample-prompt", sample_prompt, "What the finished model continues",
             OnResume::unnoticed());
  count("--sample-tokens", sample_tokens, "Tokens of that sample; 0: none", 0);
}

void TrainOptions::add_common(cli::App& app, RunConfig& config) {
  common.add_to(app);
  for (const char* name :
       {"--device", "--dtype", "--rope-frequencies", "--threads", "--seed", "--quiet", "--json"})
    app.get_option(name)->group("General");
  config.adopt(app.get_option("--device"), common.device, OnResume::unnoticed());
  config.adopt(app.get_option("--dtype"), common.dtype, OnResume::flag());
  config.adopt(app.get_option("--rope-frequencies"), common.rope_frequencies,
               OnResume::run("the checkpoint was trained that way"));
  config.adopt(app.get_option("--threads"), common.threads, OnResume::unnoticed());
  config.adopt(app.get_option("--seed"), common.seed,
               OnResume::run("the order of the data follows from it"));
  config.adopt(app.get_option("--quiet"), common.quiet, OnResume::forgotten());
  config.adopt(app.get_option("--json"), common.json, OnResume::forgotten());
}

std::vector<std::string> TrainOptions::read_config(cli::App& app, RunConfig& config_file) {
  resuming = app.count("--resume") > 0;
  if (!resuming) {
    if (!config_path.empty()) config_file.load(config_path);
    recompute_rule();
    return {};
  }
  if (!config_path.empty())
    throw UsageError(
        "give --resume or --config, not both: a run continues with its own configuration");
  if (overwrite) throw UsageError("give --resume or --overwrite, not both");
  if (resume.empty()) resume = out;
  if (resume.empty()) throw UsageError("--resume: name the run's directory, here or with --out");
  if (!out.empty() && fs::weakly_canonical(out) != fs::weakly_canonical(resume))
    throw UsageError(fmt::format(
        "--out {} differs from --resume {}: a run continues in its own directory", out, resume));
  const fs::path file = fs::path(resume) / "config.yaml";
  if (!fs::exists(file))
    throw Error(fmt::format("{} holds no run to resume: expected config.yaml in it", resume));
  auto notes = config_file.load_for_resume(file);
  recompute_rule();
  out = resume;
  return notes;
}

void TrainOptions::resolve(double default_lr, int64_t rows_per_epoch) {
  if (epochs) {
    const double rows = *epochs * static_cast<double>(rows_per_epoch);
    iterations = std::max<int64_t>(
        1, std::llround(std::ceil(rows / static_cast<double>(batch_size * accumulation))));
    if (!dump_config) epochs.reset();
  }
  if (!iterations) iterations = default_iterations;
  if (!lr) lr = default_lr;
  if (!min_lr) min_lr = schedule == "cosine" ? *lr * defaults::kMinLrShare : 0;
  if (!warmup) warmup = defaults::warmup(*iterations);
  if (!eval_every) eval_every = defaults::eval_every(*iterations);
  if (!save_every) save_every = eval_every;
}

BatchOptions TrainOptions::batch_options(Split split) const {
  const bool training = split == Split::train;
  return {.context = *context,
          .rows = batch_size,
          .packing = parse_packing(pack),
          .shuffle = training && shuffle == "on",
          .random_windows = training && windows == "random",
          .endless = training,
          .seed = common.seed,
          .data = fmt::format("--data {}: {}", data, split_name(split))};
}

EncodeOptions TrainOptions::encode_options(int64_t vocabulary) const {
  EncodeOptions options;
  options.rules.vocab_size = vocabulary;
  if (chat_template) options.rules.chat_template = parse_chat_template(*chat_template);
  options.mask_prompt = mask_prompt;
  options.response_marker = response_marker;
  return options;
}

Objective TrainOptions::objective(double default_coefficient) const {
  Objective result;
  result.balance = aux_loss == "off"  ? Objective::Balance::off
                   : aux_loss == "hf" ? Objective::Balance::hf
                                      : Objective::Balance::per_layer;
  result.aux_coefficient = aux_coefficient.value_or(default_coefficient);
  result.z_coefficient = z_coefficient;
  return result;
}

TrainSettings TrainOptions::train_settings() const {
  TrainSettings settings;
  settings.schedule = {.kind = parse_schedule(schedule),
                       .peak = *lr,
                       .least = *min_lr,
                       .warmup = *warmup,
                       .iterations = *iterations,
                       .decay_fraction = decay_fraction};
  settings.optimizer = {.beta1 = beta1,
                        .beta2 = beta2,
                        .eps = adam_eps,
                        .weight_decay = weight_decay,
                        .clip = grad_clip,
                        .bf16_state = optimizer_state == "bf16",
                        .seed = common.seed};
  settings.accumulation = accumulation;
  settings.log_every = log_every;
  settings.eval_every = *eval_every;
  settings.eval_batches = eval_batches;
  settings.save_every = *save_every;
  settings.keep_last = keep_last;
  settings.keep_best = keep_best == "on";
  settings.patience = patience;
  settings.max_skipped = max_skipped;
  settings.seed = common.seed;
  settings.validate();
  return settings;
}

}  // namespace mixtral
