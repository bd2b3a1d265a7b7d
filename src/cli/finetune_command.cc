#include "cli/finetune_command.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <memory>
#include <numeric>
#include <optional>

#include "cli/finetune_options.h"
#include "cli/train_session.h"
#include "model/checkpoint.h"
#include "model/open_tensors.h"
#include "train/adapter_checkpoint.h"
#include "train/expert_choice.h"
#include "train/language_model.h"
#include "train/model_checkpoint.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kExpertBatches = 16;  // that --experts top looks at

constexpr const char* kFinetuneExamples =
    "Examples:\n"
    "  mixtral finetune --model runs/first --data data/finetune_data --mask-prompt --out runs/qa\n"
    "  mixtral finetune --model DIR --data chats.jsonl --targets all --rank 16 --out runs/chat\n"
    "  mixtral finetune --model DIR --data pairs.jsonl --method dpo --out runs/dpo\n"
    "  mixtral finetune --resume runs/qa\n"
    "  mixtral chat --model runs/qa\n"
    "  mixtral merge --model DIR --adapter runs/qa --out models/qa\n";

/// The adapter of a run's newest readable checkpoint.
AdapterFile resumed_adapter(const FinetuneOptions& o, const ModelConfig& config) {
  std::string problem = "there is no checkpoint";
  const auto entries = CheckpointStore::list_in(fs::path(o.out) / "checkpoints");
  for (auto entry = entries.rbegin(); entry != entries.rend(); ++entry) {
    try {
      return AdapterFile::load(entry->path, config);
    } catch (const Error& error) {
      problem = error.what();
    }
  }
  throw Error(
      fmt::format("{} cannot be resumed: {}; start it again with --overwrite in place of --resume",
                  o.out, problem));
}

/// The whole command, once flags and files are read.
class Finetuning {
 public:
  Finetuning(FinetuneOptions& options, RunConfig& config_file, std::vector<std::string> notes)
      : o_(options), file_(config_file), notes_(std::move(notes)) {}

  void run() {
    if (o_.data.empty()) throw UsageError("--data is missing: a directory or file to learn from");
    if (o_.out.empty() && !o_.dump_config)
      throw UsageError("--out is missing: the directory for checkpoints and metrics");
    for (const std::string& note : notes_) say(o_.common, note);
    if (!o_.resuming && !o_.model.empty() && trains_adapter(o_.kind())) settle_adapter();
    o_.settle(file_);
    if (!o_.resuming && o_.kind() == FinetuneMethod::dpo && !o_.adapter.empty() &&
        o_.reference.empty())
      say(o_.common,
          "note: the reference is the base without the adapter that training starts from; to "
          "compare with both together, merge them first (mixtral merge) and tune the result");
    if (o_.common.random_weights && open_source(o_.common, {.model = o_.model}).is_builtin())
      base_ = o_.model;
    else
      base_ = started_from("model", o_.model);
    if (!o_.reference.empty()) reference_ = started_from("reference", o_.reference);
    const ModelSource source =
        open_source(o_.common, {base_.string(), o_.resuming ? "" : o_.adapter, o_.tokenizer});
    if (!o_.chat_template)
      if (const auto noted = source.chat_template()) o_.chat_template = name(*noted);
    config_ = source.config();
    refuse_training_noise(config_, base_.string());
    source.check_tokenizer();
    tokenizer_ = source.tokenizer();
    const auto own = source.own_chat_template();
    if (own && !o_.chat_template)
      if (const auto builtin = own->builtin()) o_.chat_template = name(*builtin);
    if (!o_.resuming && trains_adapter(o_.kind()) && o_.adapter.empty())
      starting_adapter();  // refuses flags, before data are read
    choose_context(o_, config_);
    require_positions(*o_.context, config_);
    objective_ = o_.objective(config_.router_aux_loss_coef);
    o_.aux_coefficient = objective_.aux_coefficient;
    const double default_lr = o_.default_lr(config_);
    if (o_.dump_config && !o_.epochs) {
      o_.resolve(default_lr, 0);
      fmt::print("{}", file_.dump(RunConfig::Derived::as_comments));
      return;
    }
    const TrainingData data = load_training_data(o_, tokenizer_.get(), config_.vocab_size);
    check_kind(data);
    if (own && !o_.chat_template) refuse_conversations(data, *own);
    CorpusSource train(data.train, o_.batch_options(Split::train));
    require_labels(o_, data);
    o_.resolve(default_lr, train.batches().rows_per_epoch());
    if (o_.dump_config) {
      fmt::print("{}", file_.dump(RunConfig::Derived::as_comments));
      return;
    }
    if (o_.resuming) require_same_data(data, fs::path(o_.out) / "config.yaml");
    train_model(data, train);
  }

 private:
  /// Where --model names an adapter or a run that trained one: makes that the adapter to start
  /// from, and its base the model.
  void settle_adapter() {
    const ModelSource source = open_source(o_.common, {.model = o_.model, .adapter = o_.adapter});
    o_.model = source.name();
    o_.adapter = source.adapter().string();
  }

  /// The directory that --model or --reference stands for. A run goes on with what it stood for at
  /// its start, which config.yaml notes: a run of that name may have newer checkpoints by now.
  fs::path started_from(const std::string& flag, const std::string& given) const {
    std::error_code error;
    const auto holds_model = [&](const fs::path& directory) {
      return find_model_files(directory).has_value();
    };
    fs::path noted;
    if (o_.resuming) noted = read_run_info(fs::path(o_.out) / "config.yaml", "models")[flag];
    if (noted.empty()) {
      const ModelSource source = open_source(o_.common, {.model = given, .setting = flag});
      source.refuse_adapter();
      return fs::canonical(source.directory());
    }
    if (holds_model(noted)) return noted;
    // Folders may have been moved.
    for (const fs::path& directory :
         {fs::path(given), fs::path(given) / "checkpoints" / noted.filename()})
      if (holds_model(directory)) return fs::canonical(directory);
    throw Error(fmt::format(
        "{} was started from {}, which is gone, and so is {} from --{} {}; on other weights it "
        "would be another run: put that model back (runs keep only their last checkpoints; see "
        "--keep-last), or begin a new run with --adapter {} or --model {}",
        o_.out, noted.string(), noted.filename().string(), flag, given, o_.out, o_.out));
  }

  void check_kind(const TrainingData& data) const {
    if (data.train.is_paired() == uses_preferences(o_.kind())) return;
    if (data.train.is_paired())
      throw Error(
          fmt::format("--data {} holds preference pairs, which --method {} has no use for; learn "
                      "from them with "
                      "--method dpo",
                      o_.data, o_.method));
    throw Error(fmt::format(
        "--data {} holds no preference pairs, which --method {} needs: lines {{\"prompt\", "
        "\"chosen\", \"rejected\"}}",
        o_.data, o_.method));
  }

  /// For a model whose own chat template is none of the built-in ones: it would unlearn its form.
  void refuse_conversations(const TrainingData& data, const OwnChatTemplate& own) const {
    if (data.train.counts().kinds[static_cast<size_t>(RecordKind::messages)] == 0) return;
    throw Error(fmt::format(
        "--data {} holds conversations, and the model's own chat template ({}, with {}) is none of "
        "those that are trained with; write the conversations with it (mixtral tokenizer template) "
        "as {{\"prompt\", \"completion\"}} records, or teach the model another form with "
        "--chat-template mistral-v1, mistral-hf-old or seed",
        o_.data, own.source(), fmt::join(own.markers(), " ")));
  }

  std::optional<ChatTemplate> chat_template(const TrainingData& data) const {
    if (o_.chat_template) return parse_chat_template(*o_.chat_template);
    const auto& kinds = data.train.counts().kinds;
    if (kinds[static_cast<size_t>(RecordKind::messages)] == 0 &&
        kinds[static_cast<size_t>(RecordKind::preference_messages)] == 0)
      return std::nullopt;
    return o_.encode_options(config_.vocab_size).rules.chat_template;
  }

  /// The adapter to train; with --experts top, of the right size but of any experts.
  AdapterFile starting_adapter() const {
    AdapterFile file;
    if (o_.resuming) {
      file = resumed_adapter(o_, config_);
      // The adapter's file says 0 where PEFT has no dropout; the run's configuration knows.
      file.dropout = o_.dropout.value_or(file.dropout);
      return file;
    }
    if (!o_.adapter.empty()) {
      file = AdapterFile::load(o_.adapter, config_, o_.common.random_weights ? fs::path() : base_);
      file.dropout = o_.dropout.value_or(file.dropout);
      o_.dropout = file.dropout;
    } else {
      AdapterSpec spec = o_.adapter_spec();
      const int64_t top = std::min(parse_experts(o_.experts).top, config_.num_experts);
      if (top > 0) {
        spec.experts.resize(static_cast<size_t>(top));
        std::iota(spec.experts.begin(), spec.experts.end(), int64_t{0});
      }
      file = new_adapter(spec, config_);
    }
    file.base_model = base_.string();
    return file;
  }

  /// The same with the experts that the data go to most.
  AdapterFile with_busiest_experts(Context& ctx, const Mixtral& model, CorpusSource& train) const {
    AdapterSpec spec = o_.adapter_spec();
    spec.experts_of_layer =
        busiest_experts(ctx, model, train, kExpertBatches, parse_experts(o_.experts).top);
    for (size_t layer = 0; layer < spec.experts_of_layer.size(); ++layer)
      say(o_.common, fmt::format("layer {}: tuning experts {}", layer,
                                 fmt::join(spec.experts_of_layer[layer], ", ")));
    AdapterFile file = new_adapter(spec, config_);
    file.base_model = base_.string();
    return file;
  }

  void train_model(const TrainingData& data, CorpusSource& train) {
    const FinetuneMethod kind = o_.kind();
    const TrainSettings settings = o_.train_settings();
    const auto backend = o_.common.open_device();
    const bool fresh = !o_.resuming || trains_adapter(kind);  // else a checkpoint has them
    const bool drawn = o_.common.random_weights;
    std::unique_ptr<TensorSource> weights;
    if (fresh && !drawn) weights = open_tensors(find_model_files(base_).value());
    // A base that is quantized in its files stays so.
    ParameterFormats stored;
    if (weights && trains_adapter(kind) && o_.common.dtype == "auto" && !o_.common.quantization())
      stored = stored_formats(
          *weights, config_, [&](ops::WeightFormat format) { return backend->has_format(format); });
    const Precision precision = choose_precision(
        o_.common.dtype, *backend, trains_adapter(kind) ? Purpose::tuning : Purpose::training,
        config_.dtype, stored);
    const Mixtral::Options options{.weights = precision.weights,
                                   .compute = precision.compute,
                                   .context = planned_context(o_, data),
                                   .trainable = !trains_adapter(kind),
                                   .trained_layers = o_.num_layers,
                                   .train_router = !o_.freeze_router,
                                   .rope_frequencies = o_.common.rope_dtype(),
                                   .quantization = o_.common.quantization(),
                                   .formats = stored};
    std::optional<AdapterFile> file;
    if (trains_adapter(kind)) {
      file = starting_adapter();
      for (const std::string& note : PeftLayout(*file, config_).notes())
        say(o_.common, "note: " + note);
    }
    std::optional<PreferenceSettings> preference;
    if (uses_preferences(kind)) preference = o_.preference_settings(objective_);
    const bool second_model =
        preference && (kind == FinetuneMethod::dpo_full || !o_.reference.empty());
    const TrainingMemory memory =
        require_training_memory(*backend, {.config = config_,
                                           .options = options,
                                           .objective = objective_,
                                           .optimizer = settings.optimizer,
                                           .rows = o_.batch_size,
                                           .context = planned_context(o_, data),
                                           .full_rows = train.batches().mostly_full(),
                                           .recompute = o_.recompute_rule(),
                                           .adapter = file,
                                           .preference = preference,
                                           .reference_model = second_model});
    if (o_.overwrite) {
      require_outside(o_.out, "model", base_);
      if (!o_.adapter.empty()) require_outside(o_.out, "adapter", o_.adapter);
      if (!reference_.empty()) require_outside(o_.out, "reference", reference_);
    }
    if (weights) check_weights(config_, *weights);
    RunDirectory run(o_.out, open_mode(o_));
    Mixtral model(*backend, config_, options);
    if (weights) load_weights(*backend, model, *weights);
    if (fresh && drawn) draw_weights(*backend, model, o_.common.seed);
    weights.reset();
    Arena arena(*backend);
    arena.reserve(memory.arena);
    Context ctx(*backend, arena, precision.compute);
    ctx.set_operands(precision.operands);
    if (file && !o_.resuming && o_.adapter.empty() && parse_experts(o_.experts).top > 0)
      file = with_busiest_experts(ctx, model, train);

    std::unique_ptr<Adapter> adapter;
    if (file)
      adapter =
          std::make_unique<Adapter>(*backend, model, std::move(*file),
                                    Adapter::Options{.trainable = true, .seed = o_.common.seed});
    std::unique_ptr<Mixtral> reference;
    if (second_model) reference = open_reference(*backend, options);
    std::unique_ptr<Criterion> criterion;
    if (preference)
      criterion = std::make_unique<PreferenceCriterion>(
          ctx,
          PreferenceModels{.policy = model, .adapter = adapter.get(), .reference = reference.get()},
          *preference);
    else
      criterion = std::make_unique<LanguageModelCriterion>(
          ctx, model,
          LanguageModelCriterion::Settings{.objective = objective_,
                                           .recompute = o_.recompute_rule()});
    std::unique_ptr<TrainedModel> trained;
    if (adapter)
      trained = std::make_unique<TrainedAdapter>(config_, *adapter, chat_template(data));
    else
      trained =
          std::make_unique<WholeModel>(*backend, model, tokenizer_.get(), chat_template(data));
    train_and_report(o_, settings,
                     {.command = "finetune",
                      .backend = *backend,
                      .ctx = ctx,
                      .model = model,
                      .criterion = *criterion,
                      .trained = *trained,
                      .tokenizer = tokenizer_.get(),
                      .data = data,
                      .train = train,
                      .run = run,
                      .config_text = file_.dump(),
                      .models = {{"model", base_}, {"reference", reference_}},
                      .subject = describe(*trained),
                      .planned_bytes = memory.planned,
                      .result = adapter ? "adapter" : "model",
                      .perplexity = !preference});
  }

  std::unique_ptr<Mixtral> open_reference(Backend& backend, Mixtral::Options options) const {
    options.trainable = false;
    if (!reference_.empty()) options.formats.clear();  // those of the other model's files
    if (o_.reference.empty() && o_.common.random_weights) {
      auto drawn = std::make_unique<Mixtral>(backend, config_, options);
      draw_weights(backend, *drawn, o_.common.seed);
      return drawn;
    }
    const fs::path directory = reference_.empty() ? base_ : reference_;
    auto reference = load_model(backend, directory, options);
    if (reference->config().vocab_size != config_.vocab_size)
      throw Error(fmt::format(
          "--reference {} has a vocabulary of {}, but --model {} one of {}; they must be the same",
          directory.string(), reference->config().vocab_size, o_.model, config_.vocab_size));
    return reference;
  }

  std::string describe(TrainedModel& trained) const {
    int64_t count = 0;
    trained.parameters()([&](nn::Parameter& p) {
      if (!p.grad) return;
      for (const auto& part : p.parts) count += part.shape.numel();
    });
    const int64_t total = count_parameters(config_).total;
    return fmt::format("{} of {} parameters trained ({:.2f}%), by {}", count, total,
                       100 * static_cast<double>(count) / static_cast<double>(total), o_.method);
  }

  FinetuneOptions& o_;
  RunConfig& file_;
  std::vector<std::string> notes_;
  fs::path base_, reference_;  // reference_: empty where none is named
  ModelConfig config_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  Objective objective_;
};

}  // namespace

void add_finetune_command(cli::App& app) {
  cli::App* command = app.add_subcommand("finetune", "Tune a model: LoRA, all weights, DPO");
  command->footer(kFinetuneExamples);
  auto options = std::make_shared<FinetuneOptions>();
  auto config = std::make_shared<RunConfig>(*command);
  options->add_to(*command, *config);
  command->callback([command, options, config] {
    auto notes = options->read_config(*command, *config);
    Finetuning(*options, *config, std::move(notes)).run();
  });
}

}  // namespace mixtral
