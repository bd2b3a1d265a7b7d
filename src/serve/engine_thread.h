#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "infer/engine.h"
#include "serve/engine_counts.h"
#include "serve/generation.h"
#include "text/tokenizer.h"

namespace mixtral::serve {

using JobId = uint64_t;

/// The one thread that uses an engine. Requests come through a queue from any thread; at most as
/// many answers run as the engine has room for, and clients take turns.
class EngineThread {
 public:
  struct Options {
    int64_t queue = 64;  // jobs that may wait
    /// Called on the engine's thread after each step; may be empty.
    std::function<void(const Engine&)> after_step;
  };
  /// All must outlive this. The tokenizer makes the texts.
  EngineThread(Engine& engine, const Tokenizer& tokenizer, const Options& options);
  /// Ends what still runs, with an error, and the thread.
  ~EngineThread();
  EngineThread(const EngineThread&) = delete;
  EngineThread& operator=(const EngineThread&) = delete;

  /// Queues a job. `client` is who takes turns with others. Throws ApiError 429 when too many wait,
  /// and what refuse() was given.
  JobId submit(std::vector<GenerationRequest> requests, std::string client,
               std::shared_ptr<GenerationListener> listener);
  /// Ends a job within one step, without a word to its listener. Does nothing when it has ended.
  void cancel(JobId id);

  /// Takes no more jobs: submit() throws this. Returns at once.
  void refuse(const ApiError& error);
  /// Whether no job is left.
  bool idle() const;
  /// Ends all jobs with this error.
  void end_all(const ApiError& error);

  EngineCounts counts() const;
  /// Runs `work` on the engine's thread between two steps, and waits for it. Throws what it throws.
  void with_engine(const std::function<void(Engine&)>& work);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace mixtral::serve
