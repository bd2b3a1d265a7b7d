#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "open/open_model.h"
#include "serve/chat_format.h"
#include "serve/engine_thread.h"

namespace mixtral::serve {

/// A name that requests may use.
struct ServedModel {
  std::string id, parent;  // parent: of an adapter, its base
  int32_t adapter = kOwnAdapter;
};

/// A job that ends when its client goes, or nobody waits for it.
struct Started {
  JobId job = 0;
  int64_t prompt_tokens = 0;  // of all prompts together
};

/// What all routes are built on: the model under its names, its tokenizer and its engine.
class Service {
 public:
  struct Options {
    int64_t context = 0;   // tokens of a request, prompt and answer; 0: the model's
    int64_t parallel = 4;  // answers that run at once
    int64_t queue = 64;    // jobs that may wait
    std::string name;      // of the model; empty: of its folder
    std::vector<std::pair<std::string, std::string>> adapters;  // name, folder
    /// Called after each step with the engine, which then counts its experts' load; may be empty.
    std::function<void(const Engine&)> after_step;
  };
  /// Opens the model. Throws Error as open_model does: before anything is allocated, where it and
  /// its cache do not fit.
  Service(const ModelSource& source, OpenOptions open, const Options& options,
          const ModelSource::Note& note);
  ~Service();

  const std::vector<ServedModel>& models() const { return models_; }
  /// Throws ApiError 404. An empty name is the base.
  const ServedModel& model(std::string_view name) const;
  int64_t created() const { return created_; }  // when the model was opened, in Unix seconds
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  int64_t vocabulary() const;
  int64_t layers() const;
  int64_t context() const { return context_; }
  const ChatFormat& format() const { return *format_; }
  EngineThread& engine() { return *engine_thread_; }

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
  std::shared_ptr<const Tokenizer> tokenizer_;
  OpenedModel opened_;
  std::vector<ServedModel> models_;
  std::vector<int64_t> stop_ids_;
  int64_t created_ = 0, context_ = 0;
  std::unique_ptr<ChatFormat> format_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<EngineThread> engine_thread_;
};

}  // namespace mixtral::serve
