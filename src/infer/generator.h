#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "model/mixtral.h"

namespace mixtral {

/// How to draw tokens, and when to stop.
struct GenerationOptions {
  ops::SamplingSettings sampling;
  int64_t repeat_last_n = 64;     // how many of the last tokens the repetition penalty looks at
  int64_t max_tokens = 256;       // at most; the context ends a generation too
  std::vector<int64_t> stop_ids;  // tokens that end the text (not reported)
};

/// A drawn token, with the model's log-probability of it (before temperature and filters).
struct GeneratedToken {
  int32_t id = 0;
  double log_probability = 0;
};

/// Why a generation ended.
enum class FinishReason { stop, length, cancelled };

/// Generates from one model, a sequence at a time: prompts are read in chunks, then one token a
/// step; each step is recorded once and replayed.
class Generator {
 public:
  /// Room for sequences of `context` tokens (0: as many as the model was prepared for).
  Generator(Backend& backend, const Mixtral& model, int64_t context = 0);
  ~Generator();

  int64_t context() const { return cache_.context(); }

  /// Continues `prompt` (at least one token). `on_token` is called for each new token and ends the
  /// generation by returning false. Throws Error when the prompt leaves no room in the context.
  FinishReason generate(std::span<const int32_t> prompt, const GenerationOptions& options,
                        const std::function<bool(const GeneratedToken&)>& on_token);

  /// The logits of every position of a prompt: T rows of V, handed over a chunk of rows at a time.
  void prompt_logits(std::span<const int32_t> prompt,
                     const std::function<void(int64_t first_row, const Tensor& host_logits)>& take);

 private:
  struct Step;  // the device tensors of one decoding step

  void check_prompt(std::span<const int32_t> prompt, int64_t room) const;
  /// Makes room in the cache for `tokens` tokens in all.
  void extend_cache(int64_t tokens);
  /// Runs the model over prompt tokens [begin, end) and returns their hidden states. The first call
  /// for a prompt begins at 0 and drops the tokens of the one before.
  Tensor prefill(std::span<const int32_t> prompt, int64_t begin, int64_t end);

  Backend& backend_;
  const Mixtral& model_;
  Arena arena_;       // activations
  Arena step_arena_;  // what a generation's steps share
  Context ctx_;
  KvCache cache_;
  int32_t sequence_;  // the cache's only one
};

}  // namespace mixtral
