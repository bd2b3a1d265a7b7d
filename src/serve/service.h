#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "open/open_model.h"
#include "serve/chat_format.h"
#include "serve/engine_thread.h"
#include "serve/expert_history.h"
#include "serve/http.h"

namespace mixtral::serve {

/// A name that requests may use.
struct ServedModel {
  std::string id, parent;  // parent: of an adapter, its base
  int32_t adapter = kOwnAdapter;
  std::shared_ptr<std::atomic<bool>> is_there;  // of an adapter: until it is unloaded
};

/// A job that ends when its client goes, or nobody waits for it.
struct Started {
  JobId job = 0;
  int64_t prompt_tokens = 0;  // of all prompts together
};

/// What all routes are built on: a model under its names, its tokenizer and its engine. Adapters
/// come and go while it serves. Its functions may be called from any thread but the engine's.
class Service : public std::enable_shared_from_this<Service> {
 public:
  struct Options {
    int64_t context = 0;   // tokens of a request, prompt and answer; 0: the model's
    int64_t parallel = 4;  // answers that run at once
    int64_t queue = 64;    // jobs that may wait
    std::string name;      // of the model; empty: of its folder
    std::vector<std::pair<std::string, std::string>> adapters;  // name, folder
    std::optional<int64_t> most_memory;  // bytes of the plan, where less than the device has
  };
  /// Opens the model. Throws Error as open_model does: before anything is allocated, where it and
  /// its cache do not fit.
  Service(const ModelSource& source, OpenOptions open, const Options& options,
          const ModelSource::Note& note);
  ~Service();

  /// The base first.
  std::vector<ServedModel> models() const;
  /// Throws ApiError 404. An empty name is the base.
  ServedModel model(std::string_view name) const;
  const std::string& id() const { return id_; }  // of the base
  int64_t created() const { return created_; }   // when the model was opened, in Unix seconds
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  int64_t vocabulary() const;
  int64_t layers() const;
  int64_t context() const { return context_; }
  const ChatFormat& format() const { return *format_; }
  EngineThread& engine() { return *engine_thread_; }
  const ExpertHistory& experts() const { return experts_; }
  /// Bytes of the device's memory that model, cache and adapters take, as planned.
  int64_t bytes() const { return planned_ + adapter_bytes_; }

  /// What another model does not share with it: model_identity's.
  const std::string& identity() const { return identity_; }

  /// Loads an adapter as the model BASE:NAME while others are answered. Throws Error where it is
  /// none for this model or takes more than `most` bytes of memory, and ApiError 400 where the name
  /// is taken.
  ServedModel load_adapter(const std::string& name, const std::string& folder,
                           std::optional<int64_t> most = {});
  /// Takes an adapter out. Answers that have begun go on with it; those that wait end with an
  /// error. Throws ApiError 404.
  void unload_adapter(const std::string& name);

  /// Ends a job when its client goes, as long as this is there.
  void end_with_client(JobId job, Reply& reply);

  /// One prompt of a job, with limits checked and filled in. Throws ApiError 400, `field` naming
  /// the prompt, where it has no tokens, unknown ones or too many.
  GenerationRequest generation(std::vector<int32_t> prompt, const AnswerOptions& answer,
                               const ServedModel& model, const std::string& field) const;

  /// A factory of filters that keep a rule; empty for no rule. Throws ApiError 400 naming its
  /// field.
  FilterFactory filter(const OutputRule& rule) const { return format_->filter(rule); }

  /// Plans and queues a conversation. Throws ApiError before the listener hears anything.
  Started chat(const ChatRequest& request, std::shared_ptr<ChatListener> listener);
  /// The number of its prompt's tokens. Throws as chat().
  int64_t count_tokens(const ChatRequest& request) const;

 private:
  ServedModel add_adapter(const std::string& name, const AdapterFile& file);
  void take_out(Engine& engine, const ServedModel& served);

  const ModelSource source_;  // for adapters to come; the weights are not opened again
  std::shared_ptr<const Tokenizer> tokenizer_;
  ExpertHistory experts_;
  OpenedModel opened_;
  std::string id_, identity_;
  std::vector<int64_t> stop_ids_;
  int64_t created_ = 0, context_ = 0, planned_ = 0;
  std::atomic<int64_t> adapter_bytes_ = 0;
  std::mutex changing_;       // one adapter comes or goes at a time
  mutable std::mutex mutex_;  // guards what follows
  std::vector<ServedModel> adapters_;
  std::unique_ptr<ChatFormat> format_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<EngineThread> engine_thread_;
};

}  // namespace mixtral::serve
