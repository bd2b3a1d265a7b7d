#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/advice.h"
#include "io/tensor_source.h"
#include "model/adapter_file.h"
#include "model/config.h"
#include "model/open_tensors.h"
#include "model/stored_formats.h"
#include "ops/backend.h"
#include "text/chat_template.h"
#include "text/own_chat.h"
#include "text/tokenizer.h"

namespace mixtral {

/// What a name of a model stands for, and all that its files say: resolved once, so that every part
/// of a command sees the same model although a run that is still training moves on. A name is a
/// built-in configuration, a model's directory (Hugging Face's, MLX's or Mistral's), a GGUF file, a
/// run (its best checkpoint, else its latest), a checkpoint, an adapter or a run that trained one
/// (with the base that it names), or a model of the Hugging Face hub that is in the hub's cache.
class ModelSource {
 public:
  struct Names {
    std::string model;
    std::string adapter;            // a directory or a run; empty: none, or the model's own
    std::string tokenizer;          // empty: the model's own
    std::string setting = "model";  // which setting the model's name is the value of
    bool dense = false;  // take a dense model, too, as one with one expert (model/dense_model.h)
  };
  using Note = std::function<void(const std::string&)>;

  /// Finds the files and reads the configuration; of a checkpoint, checks all files but the
  /// weights, which tensors() checks. `note` is told what the user may not expect. Throws Error
  /// saying what was looked for and what is there instead.
  static ModelSource resolve(const Names& names, const Note& note = {});

  /// The same model's tokenizer, templates and settings, with other weights.
  ModelSource with_weights(const ModelConfig& config,
                           std::shared_ptr<const TensorSource> tensors) const;

  const std::string& name() const { return names_.model; }
  /// Whether it is a dense model that counts as one with one expert.
  bool is_dense() const { return dense_; }
  /// Whether it is a built-in configuration: no files, and weights that are drawn.
  bool is_builtin() const { return directory_.empty(); }
  /// Whether its files hold weights. A configuration alone is a model, too.
  bool has_weights() const;
  /// Where the model's files are: a directory, or a GGUF file. Throws Error for a built-in
  /// configuration, which has none.
  const std::filesystem::path& directory() const;
  const ModelConfig& config() const { return config_; }
  /// In which form they are.
  ModelForm form() const { return form_; }
  /// The formats in which a backend can keep the weights as they stand in the files, where `dtype`
  /// leaves it open.
  ParameterFormats stored_formats(const Backend& backend, std::string_view dtype) const;
  /// The adapter's directory; empty where there is none.
  const std::filesystem::path& adapter() const { return adapter_; }
  /// Throws Error where the model's name stands for an adapter, and a whole model is needed.
  void refuse_adapter() const;

  /// The tokenizer, or null where the model has none. Read at the first call.
  std::shared_ptr<const Tokenizer> tokenizer() const;
  /// The same; throws where there is none, with what could be given instead, or where it has more
  /// tokens than the model.
  std::shared_ptr<const Tokenizer> require_tokenizer(std::vector<Remedy> instead = {}) const;
  /// Throws Error unless the tokenizer, where there is one, fits the model's vocabulary.
  void check_tokenizer() const;
  /// The chat template that the adapter, or else the model, was trained with, where it says so.
  std::optional<ChatTemplate> chat_template() const;
  /// The chat template that the model brings along, where it has one; see OwnChatTemplate. The
  /// tokenizer must be there, and must outlive it.
  std::optional<OwnChatTemplate> own_chat_template() const;
  /// The ids that end a text: those of config.json, generation_config.json and the tokenizer.
  std::vector<int64_t> stop_ids() const;
  /// The weights, opened at the first call. Throws Error as directory() does, and for damage.
  const TensorSource& tensors() const;
  /// The adapter's values, or nothing where there is none.
  std::optional<AdapterFile> load_adapter() const;
  /// The values of another adapter for this model: a directory or a run (resolve_adapter).
  AdapterFile load_adapter(const std::string& name) const;

 private:
  explicit ModelSource(Names names) : names_(std::move(names)) {}
  void find_files(const Note& note);
  void read_config(const Note& note);
  void read_hugging_face_config(const Note& note);

  Names names_;
  std::filesystem::path directory_, adapter_;
  ModelForm form_ = ModelForm::hugging_face;
  bool dense_ = false;
  ModelConfig config_;
  mutable std::shared_ptr<const TensorSource> tensors_;
  mutable std::shared_ptr<const Tokenizer> tokenizer_;
};

/// What an adapter's name stands for: an adapter's directory, or the best (else the latest)
/// checkpoint of a run that trained one. Throws Error, which says what was looked for.
std::filesystem::path resolve_adapter(const std::string& adapter);

}  // namespace mixtral
