#include "cli/pretrain_command.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "backends/registry.h"
#include "base/file.h"
#include "cli/commands.h"
#include "cli/train_data.h"
#include "cli/train_options.h"
#include "cli/train_progress.h"
#include "infer/methods.h"
#include "train/language_model.h"
#include "train/memory_plan.h"
#include "train/model_checkpoint.h"
#include "train/stop_signal.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr const char* kExamples =
    "Examples:\n"
    "  mixtral pretrain --model tiny --data shakespeare.txt --out runs/first\n"
    "  mixtral pretrain --model small --tokenizer tok --data data/pretrain_data --out "
    "runs/stories\n"
    "  mixtral pretrain --init DIR --data more.jsonl --lr 1e-4 --iters 500 --out runs/more\n"
    "  mixtral pretrain --resume runs/first\n"
    "  mixtral plot runs/first\n";

/// The flags of this command alone: which model.
struct PretrainOptions : TrainOptions {
  std::string model, init;
  std::optional<int64_t> vocab_size, hidden_size, intermediate_size, layers, heads, kv_heads,
      head_dim, experts, experts_per_token, sliding_window;
  std::optional<double> rope_theta, norm_eps, init_std;
  std::optional<std::string> tie_embeddings;

  void add_model(RunConfig& config) {
    const auto shape = OnResume::run("the checkpoint's weights have that shape");
    const auto start = OnResume::run("the weights come from the checkpoint");
    config.group("Model");
    config.add("-m,--model", model,
               fmt::format("From scratch: a built-in configuration ({}), or a directory whose "
                           "config.json to use",
                           fmt::join(builtin_config_names(), ", ")),
               shape);
    config.add("--init", init, "Instead: go on from this model directory or run", start);
    auto count = [&](const char* flag, std::optional<int64_t>& value, const char* help) {
      config.add(flag, value, help, shape)->check(at_least(0));
    };
    count("--vocab-size", vocab_size, "Vocabulary (default: the tokenizer's)");
    count("--hidden-size", hidden_size, "Width");
    count("--intermediate-size", intermediate_size, "Width of each expert");
    count("--layers,--num-layers", layers, "Layers");
    count("--heads", heads, "Query heads");
    count("--kv-heads", kv_heads, "Key-value heads, which divide the query heads");
    count("--head-dim", head_dim, "Width of a head (default: width / heads)");
    count("--experts", experts, "Experts of a layer");
    count("--experts-per-token", experts_per_token, "Experts that each token goes to");
    count("--sliding-window", sliding_window, "Tokens that attention sees; 0: all");
    config.add("--rope-theta", rope_theta, "Base of the rotary positions", shape);
    config.add("--norm-eps", norm_eps, "Epsilon of the norms", shape);
    config.add("--tie-embeddings", tie_embeddings, "on: the output matrix is the embedding", shape)
        ->check(on_off());
    config.add("--init-std", init_std,
               "Deviation of the starting weights (default: by the model's width)", start);
  }

  bool changes_shape() const {
    for (const auto* value : {&vocab_size, &hidden_size, &intermediate_size, &layers, &heads,
                              &kv_heads, &head_dim, &experts, &experts_per_token, &sliding_window})
      if (*value) return true;
    return rope_theta || norm_eps || init_std || tie_embeddings;
  }

  /// The configuration of a model from scratch.
  ModelConfig new_config(const Tokenizer* tokenizer_in_use) const {
    std::error_code error;
    const bool builtin = is_builtin_config(model) && !fs::exists(model, error);
    ModelConfig config = model_config(model);
    auto take = [](const std::optional<int64_t>& value, int64_t& field) {
      if (value) field = *value;
    };
    if (tokenizer_in_use) {
      config.vocab_size = tokenizer_in_use->vocab_size();
      config.bos_id = tokenizer_in_use->bos_id();
      config.pad_id = tokenizer_in_use->pad_id();
      config.eos_ids.clear();
      if (tokenizer_in_use->eos_id() >= 0) config.eos_ids = {tokenizer_in_use->eos_id()};
    }
    take(vocab_size, config.vocab_size);
    if (tokenizer_in_use && config.vocab_size < tokenizer_in_use->vocab_size())
      throw UsageError(fmt::format("--vocab-size {} is less than the tokenizer's {}",
                                   config.vocab_size, tokenizer_in_use->vocab_size()));
    take(hidden_size, config.hidden_size);
    take(intermediate_size, config.intermediate_size);
    take(layers, config.num_layers);
    take(heads, config.num_heads);
    if (heads && !kv_heads) config.num_kv_heads = std::min(config.num_kv_heads, *heads);
    take(kv_heads, config.num_kv_heads);
    if ((hidden_size || heads) && config.num_heads > 0)
      config.head_dim = config.hidden_size / config.num_heads;
    take(head_dim, config.head_dim);
    take(experts, config.num_experts);
    if (experts && !experts_per_token)
      config.experts_per_token = std::min(config.experts_per_token, *experts);
    take(experts_per_token, config.experts_per_token);
    take(sliding_window, config.sliding_window);
    if (rope_theta) config.rope_theta = *rope_theta;
    if (norm_eps) config.rms_norm_eps = *norm_eps;
    if (tie_embeddings) config.tie_embeddings = *tie_embeddings == "on";
    if (init_std)
      config.initializer_range = *init_std;
    else if (!builtin || hidden_size)
      config.initializer_range = defaults::initializer_range(config);
    config.dtype = Dtype::f32;
    config.validate("the model's flags");
    return config;
  }

  /// Notes the model that is trained in full, for config.yaml.
  void record(const ModelConfig& config) {
    vocab_size = config.vocab_size;
    hidden_size = config.hidden_size;
    intermediate_size = config.intermediate_size;
    layers = config.num_layers;
    heads = config.num_heads;
    kv_heads = config.num_kv_heads;
    head_dim = config.head_dim;
    experts = config.num_experts;
    experts_per_token = config.experts_per_token;
    sliding_window = config.sliding_window;
    rope_theta = config.rope_theta;
    norm_eps = config.rms_norm_eps;
    tie_embeddings = config.tie_embeddings ? "on" : "off";
    init_std = config.initializer_range;
  }
};

/// The model to train and its tokenizer, before anything is allocated.
struct Subject {
  ModelConfig config;
  std::unique_ptr<Tokenizer> tokenizer;  // may be null
  fs::path weights;                      // a directory; empty: random
};

/// A resumed run's: what its newest readable checkpoint says.
Subject resumed_subject(const PretrainOptions& o) {
  Subject subject;
  std::string problem = "there is no checkpoint";
  auto entries = CheckpointStore::list_in(fs::path(o.out) / "checkpoints");
  for (auto entry = entries.rbegin(); entry != entries.rend(); ++entry) {
    try {
      subject.config = ModelConfig::load(entry->path);
      subject.tokenizer = find_tokenizer(entry->path);
      if (!subject.tokenizer && !o.tokenizer.empty())
        subject.tokenizer = load_tokenizer(o.tokenizer);
      return subject;
    } catch (const Error& error) {
      problem = error.what();
    }
  }
  throw Error(
      fmt::format("{} cannot be resumed: {}; start it again with --overwrite in place of --resume",
                  o.out, problem));
}

Subject choose_subject(const PretrainOptions& o) {
  if (o.resuming) return resumed_subject(o);
  if (o.model.empty() == o.init.empty())
    throw UsageError(fmt::format(
        "give either --model (from scratch: {}) or --init (a model directory to go on from)",
        fmt::join(builtin_config_names(), ", ")));
  Subject subject;
  if (!o.init.empty()) {
    if (o.changes_shape())
      throw UsageError(
          "--init takes the model as it is; flags of its shape go with --model, from scratch");
    subject.weights = resolve_model(o.init);
    subject.config = ModelConfig::load(subject.weights);
    subject.tokenizer = open_tokenizer(o.tokenizer, subject.weights.string());
    if (subject.tokenizer && subject.tokenizer->vocab_size() > subject.config.vocab_size)
      throw Error(fmt::format(
          "the tokenizer has {} pieces but the model a vocabulary of {}; they do not belong "
          "together",
          subject.tokenizer->vocab_size(), subject.config.vocab_size));
  } else {
    subject.tokenizer = open_tokenizer(o.tokenizer, o.model);
    if (!subject.tokenizer) subject.tokenizer = default_tokenizer(o);
    subject.config = o.new_config(subject.tokenizer.get());
  }
  return subject;
}

/// Settles --context, and the positions that the model has.
void choose_context(PretrainOptions& o, ModelConfig& config) {
  const bool whole_records = o.pack == "off" && o.windows == "documents";
  if (!o.context)
    o.context =
        whole_records ? config.max_positions : std::min(config.max_positions, defaults::kContext);
  if (*o.context <= config.max_positions) return;
  if (!o.init.empty())
    say(o.common, fmt::format("--context {}: the model's {} positions grow to that", *o.context,
                              config.max_positions));
  config.max_positions = *o.context;
}

int64_t resident_bytes() {
  long pages = 0, resident = 0;
  if (std::FILE* file = std::fopen("/proc/self/statm", "r")) {
    if (std::fscanf(file, "%ld %ld", &pages, &resident) != 2) resident = 0;
    std::fclose(file);
  }
  return int64_t{resident} * ::sysconf(_SC_PAGESIZE);
}

void print_sample(const PretrainOptions& o, Backend& backend, const Mixtral& model,
                  const Tokenizer* tokenizer, ordered_json& json) {
  if (!tokenizer || o.sample_tokens == 0) return;
  Generator generator(backend, model);
  const auto prompt = prompt_tokens(*tokenizer, o.sample_prompt);
  const int64_t room = generator.context() - static_cast<int64_t>(prompt.size());
  if (prompt.empty() || room < 1) return;
  if (!o.common.json) fmt::print("sample:\n{}", o.sample_prompt);
  const auto text = generate_after_training(generator, *tokenizer, o.sample_prompt,
                                            std::min(o.sample_tokens, room), o.common.seed,
                                            [&](std::string_view piece) {
                                              if (!o.common.json)
                                                std::fwrite(piece.data(), 1, piece.size(), stdout);
                                            });
  json["sample"] = o.sample_prompt + text.text;
}

ordered_json result_json(const PretrainOptions& o, const TrainResult& result) {
  ordered_json json;
  json["run"] = o.out;
  json["stopped"] = result.reason == TrainResult::Reason::finished         ? "finished"
                    : result.reason == TrainResult::Reason::no_improvement ? "no improvement"
                                                                           : "signal";
  json["step"] = result.step;
  json["tokens"] = result.tokens;
  json["skipped"] = result.skipped;
  json["train_loss"] = result.train_loss;
  if (result.val_loss) json["val_loss"] = *result.val_loss;
  if (result.best)
    json["best"] = {{"step", result.best->step}, {"val_loss", result.best->val_loss}};
  if (result.test_loss) {
    json["test_loss"] = *result.test_loss;
    json["test_perplexity"] = std::exp(*result.test_loss);
  }
  if (result.checkpoint) json["checkpoint"] = result.checkpoint->path.string();
  json["seconds"] = result.seconds;
  return json;
}

void print_result(const TrainResult& result) {
  fmt::print("{} steps, {} tokens in {}\n", result.step, result.tokens,
             format_duration(result.seconds));
  fmt::print("training loss {:.4f}\n", result.train_loss);
  if (result.best)
    fmt::print("best validation loss {:.4f}, perplexity {:.3f}, at step {}\n",
               result.best->val_loss, std::exp(result.best->val_loss), result.best->step);
  if (result.test_loss)
    fmt::print("test loss {:.4f}, perplexity {:.3f}\n", *result.test_loss,
               std::exp(*result.test_loss));
  if (result.checkpoint) fmt::print("model: {}\n", result.checkpoint->path.string());
}

/// The whole command, once flags and files are read.
class Pretraining {
 public:
  Pretraining(PretrainOptions& options, RunConfig& config_file, std::vector<std::string> notes)
      : o_(options), file_(config_file), notes_(std::move(notes)) {}

  void run() {
    if (o_.data.empty()) throw UsageError("--data is missing: a directory or file to learn from");
    if (o_.out.empty() && !o_.dump_config)
      throw UsageError("--out is missing: the directory for checkpoints and metrics");
    for (const std::string& note : notes_) say(o_.common, note);
    Subject subject = choose_subject(o_);
    choose_context(o_, subject.config);
    const double coefficient = subject.config.router_aux_loss_coef;
    objective_ = o_.objective(coefficient);
    o_.aux_coefficient = subject.config.router_aux_loss_coef = objective_.aux_coefficient;
    const double default_lr = defaults::learning_rate(subject.config);
    if (o_.dump_config && !o_.epochs) {
      o_.resolve(default_lr, 0);
      dump(subject);
      return;
    }
    const TrainingData data =
        load_training_data(o_, subject.tokenizer.get(), subject.config.vocab_size);
    if (data.train.is_paired())
      throw Error(fmt::format("--data {} holds preference pairs, which pretraining has no use for",
                              o_.data));
    CorpusSource train(data.train, o_.batch_options(Split::train));
    o_.resolve(default_lr, train.batches().rows_per_epoch());
    if (o_.dump_config) {
      dump(subject);
      return;
    }
    if (o_.resuming) require_same_data(data, fs::path(o_.out) / "config.yaml");
    train_model(subject, data, train);
  }

 private:
  void dump(const Subject& subject) {
    if (o_.init.empty()) o_.record(subject.config);
    fmt::print("{}", file_.dump());
  }

  void train_model(const Subject& subject, const TrainingData& data, CorpusSource& train) {
    const TrainSettings settings = o_.train_settings();
    const auto backend = o_.common.open_device();
    const Precision precision =
        choose_precision(o_.common.dtype, *backend, Purpose::training, subject.config.dtype);
    const Mixtral::Options options{.weights = precision.weights,
                                   .compute = precision.compute,
                                   .context = *o_.context,
                                   .trainable = true,
                                   .rope_frequencies = o_.common.rope_dtype()};
    const int64_t arena_bytes = check_memory(*backend, subject.config, options, settings, data);

    const auto how = o_.resuming    ? RunDirectory::Open::continued
                     : o_.overwrite ? RunDirectory::Open::replace
                                    : RunDirectory::Open::fresh;
    RunDirectory run(o_.out, how);
    Mixtral model(*backend, subject.config, options);
    if (!subject.weights.empty())
      load_weights(*backend, model, ModelTensors(subject.weights));
    else if (!o_.resuming)
      nn::initialise(*backend, model.parameters(),
                     defaults::initialisation(subject.config, o_.common.seed));
    Arena arena(*backend);
    arena.reserve(arena_bytes);
    Context ctx(*backend, arena, precision.compute);
    ctx.set_operands(precision.operands);
    LanguageModelCriterion criterion(ctx, model,
                                     {.objective = objective_, .recompute = o_.recompute});
    WholeModel whole(*backend, model, subject.tokenizer.get());
    std::optional<CorpusSource> validation, test;
    if (data.validation) validation.emplace(*data.validation, o_.batch_options(Split::val));
    if (data.test) test.emplace(*data.test, o_.batch_options(Split::test));

    TrainResult result;
    {
      TrainProgress progress(o_.common, run.path());
      const StopSignal stop;
      Trainer trainer({.ctx = ctx,
                       .criterion = criterion,
                       .model = whole,
                       .train = train,
                       .validation = validation ? &*validation : nullptr,
                       .test = test ? &*test : nullptr,
                       .run = run,
                       .observer = progress,
                       .stop_signal = [&] { return stop.arrived(); }},
                      settings);
      if (o_.resuming) trainer.resume();
      if (o_.init.empty()) o_.record(subject.config);
      write_file(run.config_path(),
                 file_.dump() + run_info_text(*backend, data, subject.tokenizer.get()));
      announce(progress, *backend, model);
      result = trainer.run();
      progress.draw();
      if (result.signal != 0) {
        progress.say(
            fmt::format("stopped by signal {} after step {}; continue with: mixtral "
                        "pretrain --resume {}",
                        result.signal, result.step, o_.out));
        throw ExitStatus{128 + result.signal};
      }
    }
    ordered_json json = result_json(o_, result);
    if (!o_.common.json) print_result(result);
    print_sample(o_, *backend, model, subject.tokenizer.get(), json);
    if (o_.common.json)
      fmt::print("{}\n", json.dump(-1, ' ', false, ordered_json::error_handler_t::replace));
  }

  /// Refuses what cannot fit. Returns the bytes of a step's activations.
  int64_t check_memory(const Backend& backend, const ModelConfig& config,
                       const Mixtral::Options& options, const TrainSettings& settings,
                       const TrainingData& data) {
    const bool whole_records = o_.pack == "off" && o_.windows == "documents";
    const TrainingShape shape{
        .config = config,
        .options = options,
        .objective = objective_,
        .optimizer = settings.optimizer,
        .rows = o_.batch_size,
        .context = whole_records ? std::min(*o_.context, data.longest()) : *o_.context,
        .recompute = o_.recompute};
    const auto planner = make_planning_backend(&backend);
    MemoryPlan plan = plan_training(*planner, shape);
    const int64_t arena_bytes = plan.bytes_of("activations") + plan.bytes_of("logits, a slice");
    if (!backend.name().starts_with("cuda"))
      plan.items.push_back({"program and data", resident_bytes()});
    require_memory(*planner, shape, plan, backend.memory());
    planned_ = plan.total();
    return arena_bytes;
  }

  void announce(TrainProgress& progress, const Backend& backend, const Mixtral& model) {
    const ParameterCount count = count_parameters(model.config());
    progress.say(fmt::format(
        "{} parameters, {} active for a token; {} steps of {} x {} x {} tokens; lr {:.2e} {}; "
        "about {} of memory; {}",
        count.total, count.active, *o_.iterations, o_.accumulation, o_.batch_size, *o_.context,
        *o_.lr, o_.schedule, format_bytes(planned_), backend.description()));
  }

  PretrainOptions& o_;
  RunConfig& file_;
  std::vector<std::string> notes_;
  Objective objective_;
  int64_t planned_ = 0;
};

}  // namespace

void add_pretrain_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "pretrain", "Train a Mixtral on text from scratch, or go on training one (all weights)");
  command->footer(kExamples);
  auto options = std::make_shared<PretrainOptions>();
  auto config = std::make_shared<RunConfig>(*command);
  options->add_model(*config);
  options->add_data(*config);
  options->add_optimization(*config);
  options->add_run(*command, *config);
  options->add_common(*command, *config);
  command->callback([command, options, config] {
    auto notes = options->read_config(*command, *config);
    Pretraining(*options, *config, std::move(notes)).run();
  });
}

}  // namespace mixtral
