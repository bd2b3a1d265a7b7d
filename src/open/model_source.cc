#include "open/model_source.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/nearest.h"
#include "io/gguf.h"
#include "io/json.h"
#include "io/manifest.h"
#include "model/checkpoint.h"
#include "model/dense_model.h"
#include "open/hub_cache.h"
#include "train/checkpoint_check.h"
#include "train/checkpoint_store.h"

namespace mixtral {
namespace {

namespace fs = std::filesystem;

bool has_file(const fs::path& directory, std::string_view name) {
  std::error_code error;
  return fs::exists(directory / name, error);
}

/// Whether a path is an adapter's directory, or a GGUF file that holds one.
bool holds_adapter(const fs::path& path) {
  if (has_file(path, "adapter_config.json")) return true;
  if (has_file(path, "lora.safetensors") && !has_file(path, "config.json")) return true;
  if (!is_gguf_file(path)) return false;
  try {
    return GgufFile(path).header().text("general.type") == "adapter";
  } catch (const Error&) {
    return false;  // damaged, as reading it will say
  }
}

bool has_weights(const fs::path& directory) {
  return has_file(directory, "model.safetensors") ||
         has_file(directory, "model.safetensors.index.json");
}

/// Whether a path holds a model: trainers write a config.json beside adapters, too, and a model may
/// have an adapter beside it.
bool holds_model(const fs::path& path) {
  return find_model_files(path) &&
         (!holds_adapter(path) || has_weights(path) || has_file(path, "consolidated.safetensors"));
}

/// The folder that a name stands for: its own, or that of its download from the hub.
fs::path folder_of(const std::string& name) {
  std::error_code error;
  if (fs::exists(name, error) || is_builtin_config(name)) return name;
  return find_in_hub_cache(name).value_or(name);
}

/// The adapter that a folder stands for, where it stands for one.
std::optional<fs::path> find_adapter(const fs::path& path) {
  if (holds_adapter(path)) return path;
  auto checkpoint = find_checkpoint(path);
  if (checkpoint && holds_adapter(*checkpoint)) return checkpoint;
  return std::nullopt;
}

AdvisedError about(const std::string& setting, const std::string& name,
                   const std::string& sentence) {
  return {sentence, {.subject = {setting, name}, .remedies = {}}};
}

/// The model that an adapter says it is for.
std::string base_of(const fs::path& adapter, const ModelSource::Names& names) {
  // Other adapters than PEFT's never say.
  const bool says = has_file(adapter, "adapter_config.json");
  const Json config =
      says ? Json::load(adapter / "adapter_config.json") : Json::parse("{}", adapter.string());
  const Json* base = config.find("base_model_name_or_path");
  const Advice advice{.subject = {names.setting, names.model},
                      .lead = "name that model, and this adapter, with",
                      .join = Advice::Join::all,
                      .remedies = {{{names.setting, "BASE"}}, {{"adapter", names.model}}}};
  if (!base || !base->is_string() || base->as_string().empty())
    throw AdvisedError("holds an adapter, which does not say for which model it is", advice);
  const std::string& name = base->as_string();
  const fs::path folder = folder_of(name);
  if (!is_builtin_config(name) && !holds_model(folder) && !find_checkpoint(folder) &&
      !find_adapter(folder))
    throw AdvisedError(
        fmt::format("holds an adapter for the model {}, which is not there", printable(name)),
        advice);
  return name;
}

/// Says why a name stands for nothing.
[[noreturn]] void not_found(const ModelSource::Names& names) {
  const std::string& model = names.model;
  std::error_code error;
  if (!fs::exists(model, error)) {
    if (is_hub_name(model)) {
      const fs::path cache = hub_cache_folder();
      throw about(names.setting, model,
                  fmt::format("there is no such directory, and no download of that name in {}; "
                              "download it from the Hugging Face hub by `hf download {}`, then "
                              "give the same name again",
                              cache.empty() ? "a Hugging Face cache" : cache.string(), model));
    }
    const std::string close = nearest(model, builtin_config_names());
    throw about(names.setting, model,
                fmt::format("there is no such directory, and the built-in configurations are {}{}",
                            fmt::join(builtin_config_names(), ", "),
                            close.empty() ? "" : fmt::format("; did you mean {}?", close)));
  }
  if (!fs::is_directory(model, error))
    throw about(
        names.setting, model,
        "is a file; what is read is a GGUF file, a directory with config.json, the weights in "
        ".safetensors files and tokenizer.model, or a run");
  throw about(names.setting, model,
              "found neither config.json (a model) nor checkpoints (a run) in it, nor params.json "
              "(Mistral's files) nor a GGUF file");
}

}  // namespace

fs::path resolve_adapter(const std::string& adapter) {
  const fs::path folder = folder_of(adapter);
  if (const auto found = find_adapter(folder)) {
    if (is_checkpoint(*found)) verify_checkpoint(*found, CheckpointUse::inference);
    return *found;
  }
  std::error_code error;
  if (!fs::exists(folder, error)) throw about("adapter", adapter, "there is no such directory");
  throw about("adapter", adapter,
              fmt::format("found neither adapter_config.json (an adapter) nor a checkpoint of a "
                          "run that trained one{}",
                          find_checkpoint(folder) ? "; the run there trained a whole model" : ""));
}

ModelSource ModelSource::resolve(const Names& names, const Note& note) {
  ModelSource source(names);
  source.find_files(note);
  source.read_config(note);
  return source;
}

void ModelSource::find_files(const Note& note) {
  if (!names_.adapter.empty()) adapter_ = resolve_adapter(names_.adapter);
  fs::path folder = folder_of(names_.model);
  if (!holds_model(folder))
    if (const auto found = find_adapter(folder)) {
      if (!adapter_.empty())
        throw about(names_.setting, names_.model,
                    "holds an adapter, not the whole model that is needed beside the adapter that "
                    "was named");
      adapter_ = resolve_adapter(names_.model);
      const std::string base = base_of(*found, names_);
      folder = folder_of(base);
      if (!holds_model(folder) && find_adapter(folder))
        throw about(names_.setting, names_.model,
                    fmt::format("holds an adapter for {}, which is itself an adapter; merge that "
                                "one into its own base first",
                                printable(base)));
      names_.model = base;
    }
  const bool downloaded = folder != fs::path(names_.model);
  std::error_code error;
  if (holds_model(folder)) {
    const ModelFiles files = *find_model_files(folder);
    directory_ = files.path;
    form_ = files.form;
    if (files.others && note)
      note(
          fmt::format("note: {} holds a model in the forms of Hugging Face and of Mistral; Hugging "
                      "Face's files are read (config.json), Mistral's (params.json) are not",
                      folder.string()));
  } else if (const auto checkpoint = find_checkpoint(folder))
    directory_ = *checkpoint;
  else if (downloaded)
    throw about(names_.setting, names_.model,
                fmt::format("its download in {} has no config.json; finish it by `hf download {}`",
                            folder.string(), names_.model));
  else if (!is_builtin_config(names_.model) || fs::exists(folder, error))
    not_found(names_);
  if (downloaded && note)
    note(fmt::format("note: {} is read from {}", names_.model, directory_.string()));
}

void ModelSource::read_config(const Note& note) {
  if (is_builtin()) {
    config_ = builtin_config(names_.model);
    return;
  }
  if (is_checkpoint(directory_)) verify_checkpoint(directory_, CheckpointUse::inference);
  if (form_ == ModelForm::hugging_face)
    read_hugging_face_config(note);
  else
    config_ = read_model_config({directory_, form_, false}, tensors(), note);
}

void ModelSource::read_hugging_face_config(const Note& note) {
  const fs::path file = directory_ / "config.json";
  const std::string text = read_listed(file, kConfigLimits.bytes);
  const Json json = Json::parse(text, file.string(), kConfigLimits);
  const fs::path generation = directory_ / "generation_config.json";
  std::error_code error;
  std::optional<Json> more;
  if (fs::exists(generation, error)) more = Json::load(generation, kConfigLimits);
  dense_ = names_.dense && is_dense_config(json);
  config_ = dense_ ? dense_config(text, file.string(), more ? &*more : nullptr)
                   : ModelConfig::parse(json, more ? &*more : nullptr);
  // Only of these does a configuration depend on the weights.
  if (mixtral::has_weights(directory_) && (config_.dtype_is_open || config_.tie_embeddings))
    config_ = settle_config(config_, tensors(), note);
}

void ModelSource::refuse_adapter() const {
  if (adapter_.empty() || !names_.adapter.empty()) return;
  throw about(names_.setting, adapter_.string(),
              fmt::format("holds an adapter, and here a whole model is needed; merge it into its "
                          "base, {}, first (mixtral merge)",
                          names_.model));
}

const fs::path& ModelSource::directory() const {
  if (is_builtin())
    throw about(names_.setting, names_.model,
                "a built-in configuration has no weights; train it first (mixtral pretrain), or "
                "name a model's directory");
  return directory_;
}

std::shared_ptr<const Tokenizer> ModelSource::tokenizer() const {
  if (!tokenizer_ && !names_.tokenizer.empty()) tokenizer_ = load_tokenizer(names_.tokenizer);
  if (!tokenizer_ && !is_builtin()) tokenizer_ = find_tokenizer(directory_);
  return tokenizer_;
}

std::shared_ptr<const Tokenizer> ModelSource::require_tokenizer(std::vector<Remedy> instead) const {
  check_tokenizer();
  if (tokenizer()) return tokenizer();
  const bool other = !is_builtin() && has_file(directory_, "tokenizer.json");
  instead.insert(instead.begin(), Remedy{.setting = {.name = "tokenizer", .value = ""}});
  throw AdvisedUsageError(
      fmt::format(
          "{} has no tokenizer{}", names_.model,
          other ? " that is read here: beside its tokenizer.json, tokenizer.model is needed" : ""),
      {.lead = "give", .remedies = std::move(instead)});
}

void ModelSource::check_tokenizer() const {
  if (tokenizer() && tokenizer()->vocab_size() > config_.vocab_size)
    throw Error(
        fmt::format("the tokenizer has {} pieces but the model a vocabulary of {}; they do not "
                    "belong together",
                    tokenizer()->vocab_size(), config_.vocab_size));
}

std::optional<ChatTemplate> ModelSource::chat_template() const {
  if (!adapter_.empty())
    if (const auto noted = find_chat_template_name(adapter_)) return noted;
  if (is_builtin()) return std::nullopt;
  return find_chat_template_name(directory_);
}

std::optional<OwnChatTemplate> ModelSource::own_chat_template() const {
  if (is_builtin() || !tokenizer()) return std::nullopt;
  return OwnChatTemplate::find(directory_, *tokenizer());
}

std::vector<int64_t> ModelSource::stop_ids() const {
  return answer_ends(config_.eos_ids, directory_, tokenizer().get());
}

bool ModelSource::has_weights() const {
  return !is_builtin() && (form_ != ModelForm::hugging_face || mixtral::has_weights(directory_));
}

ParameterFormats ModelSource::stored_formats(const Backend& backend, std::string_view dtype) const {
  if (!has_weights() || dtype != "auto") return {};
  return mixtral::stored_formats(
      tensors(), config_, [&](ops::WeightFormat format) { return backend.has_format(format); });
}

const TensorSource& ModelSource::tensors() const {
  if (!tensors_) {
    tensors_ = open_tensors({directory(), form_, false});
    if (dense_) tensors_ = std::make_shared<DenseTensors>(tensors_, config_);
  }
  return *tensors_;
}

ModelSource ModelSource::with_weights(const ModelConfig& config,
                                      std::shared_ptr<const TensorSource> tensors) const {
  ModelSource other = *this;
  other.config_ = config;
  other.tensors_ = std::move(tensors);
  return other;
}

std::optional<AdapterFile> ModelSource::load_adapter() const {
  if (adapter_.empty()) return std::nullopt;
  return AdapterFile::load(adapter_, config_, directory_);
}

AdapterFile ModelSource::load_adapter(const std::string& name) const {
  return AdapterFile::load(resolve_adapter(name), config_, directory_);
}

}  // namespace mixtral
