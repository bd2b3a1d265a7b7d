#include "cli/pretrain_command.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <memory>
#include <optional>

#include "cli/commands.h"
#include "cli/train_data.h"
#include "cli/train_options.h"
#include "cli/train_session.h"
#include "train/language_model.h"
#include "train/model_checkpoint.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

constexpr const char* kPretrainExamples =
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
  std::optional<double> rope_theta, norm_eps, init_std, embedding_std;
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
    config.add("--init", init, "Start from an existing model directory or run, instead of --model",
               start);
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
    config.add("--embedding-std", embedding_std,
               "Deviation of the starting embedding (default: four times that)", start);
  }

  bool changes_shape() const {
    for (const auto* value : {&vocab_size, &hidden_size, &intermediate_size, &layers, &heads,
                              &kv_heads, &head_dim, &experts, &experts_per_token, &sliding_window})
      if (*value) return true;
    return rope_theta || norm_eps || init_std || embedding_std || tie_embeddings;
  }

  /// The configuration of a model from scratch.
  ModelConfig new_config(const Tokenizer* tokenizer_in_use) const {
    std::error_code error;
    const bool builtin = is_builtin_config(model) && !fs::exists(model, error);
    ModelConfig config = open_source(common, {.model = model}).config();
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
    if (!embedding_std) embedding_std = defaults::embedding_deviation(config);
  }
};

/// The model to train and its tokenizer, before anything is allocated.
struct Subject {
  ModelConfig config;
  std::shared_ptr<const Tokenizer> tokenizer;  // may be null
  fs::path weights;                            // a directory; empty: random
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
    const ModelSource source =
        open_source(o.common, {.model = o.init, .tokenizer = o.tokenizer, .setting = "init"});
    source.refuse_adapter();
    source.check_tokenizer();
    subject.weights = source.directory();
    subject.config = source.config();
    subject.tokenizer = source.tokenizer();
  } else {
    subject.tokenizer =
        open_source(o.common, {.model = o.model, .tokenizer = o.tokenizer}).tokenizer();
    if (!subject.tokenizer) subject.tokenizer = default_tokenizer(o);
    subject.config = o.new_config(subject.tokenizer.get());
  }
  return subject;
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
    refuse_training_noise(subject.config, o_.init.empty() ? o_.model : o_.init);
    choose_context(o_, subject.config);
    if (*o_.context > subject.config.max_positions) {
      if (!o_.init.empty())
        say(o_.common, fmt::format("--context {}: the model's {} positions grow to that",
                                   *o_.context, subject.config.max_positions));
      subject.config.max_positions = *o_.context;
    }
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
    require_labels(o_, data);
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
    fmt::print("{}", file_.dump(RunConfig::Derived::as_comments));
  }

  void initialise(Backend& backend, Mixtral& model) const {
    nn::Initialisation how = defaults::initialisation(model.config(), o_.common.seed);
    if (o_.embedding_std) how.embedding_deviation = *o_.embedding_std;
    nn::initialise(backend, model.parameters(), how);
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
    const TrainingMemory memory =
        require_training_memory(*backend, {.config = subject.config,
                                           .options = options,
                                           .objective = objective_,
                                           .optimizer = settings.optimizer,
                                           .rows = o_.batch_size,
                                           .context = planned_context(o_, data),
                                           .full_rows = train.batches().mostly_full(),
                                           .recompute = o_.recompute_rule()});
    if (o_.overwrite && !subject.weights.empty()) require_outside(o_.out, "init", subject.weights);
    std::unique_ptr<TensorSource> weights;
    if (!subject.weights.empty()) {
      weights = open_tensors(find_model_files(subject.weights).value());
      check_weights(subject.config, *weights);
    }
    RunDirectory run(o_.out, open_mode(o_));
    Mixtral model(*backend, subject.config, options);
    if (weights)
      load_weights(*backend, model, *weights);
    else if (!o_.resuming)
      initialise(*backend, model);
    weights.reset();
    Arena arena(*backend);
    arena.reserve(memory.arena);
    Context ctx(*backend, arena, precision.compute);
    ctx.set_operands(precision.operands);
    LanguageModelCriterion criterion(ctx, model,
                                     {.objective = objective_, .recompute = o_.recompute_rule()});
    WholeModel whole(*backend, model, subject.tokenizer.get());
    if (o_.init.empty()) o_.record(subject.config);
    const ParameterCount count = count_parameters(model.config());
    train_and_report(
        o_, settings,
        {.command = "pretrain",
         .backend = *backend,
         .ctx = ctx,
         .model = model,
         .criterion = criterion,
         .trained = whole,
         .tokenizer = subject.tokenizer.get(),
         .data = data,
         .train = train,
         .run = run,
         .config_text = file_.dump(),
         .subject = fmt::format("{} parameters, {} active for a token", count.total, count.active),
         .planned_bytes = memory.planned});
  }

  PretrainOptions& o_;
  RunConfig& file_;
  std::vector<std::string> notes_;
  Objective objective_;
};

}  // namespace

void add_pretrain_command(cli::App& app) {
  cli::App* command = app.add_subcommand(
      "pretrain", "Train a Mixtral on text from scratch, or go on training one (all weights)");
  command->footer(kPretrainExamples);
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
