#pragma once

#include <cstdint>
#include <functional>
#include <string_view>
#include <utility>
#include <vector>

#include "nn/sequences.h"
#include "ops/vocab.h"

namespace mixtral {

/// How to draw tokens, and when to stop.
struct GenerationOptions {
  ops::SamplingSettings sampling;  // but for repeat_last_n, which is below
  int64_t repeat_last_n = 64;      // how many of the last tokens the repetition penalty looks at
  int64_t max_tokens = 256;        // at most; the context ends a generation too
  std::vector<int64_t> stop_ids;   // tokens that end the text (not reported)
  // Before each draw `logit_bias` is added to the logits of its tokens. A token that was drawn
  // before loses `presence_penalty` once and `frequency_penalty` for each time. The prompt does not
  // count.
  std::vector<std::pair<int32_t, float>> logit_bias;
  float presence_penalty = 0, frequency_penalty = 0;

  bool penalises() const { return presence_penalty != 0 || frequency_penalty != 0; }
};

struct TokenProbability {
  int32_t id = 0;
  double log_probability = 0;
};

/// Where one token went on its way through the model: in each of L layers its k experts, the
/// heaviest first, and their weights in the sum.
struct TokenRoutes {
  std::vector<int32_t> expert;  // [L, k]
  std::vector<float> weight;    // [L, k]
};

/// A drawn token, with the model's log-probability of it (before temperature and filters).
struct GeneratedToken {
  int32_t id = 0;
  double log_probability = 0;
  std::vector<TokenProbability> best;  // the most probable tokens in order, where asked for
  TokenRoutes routes;  // of the pass that made it, that of the token before; where asked for
};

/// Why a generation ended: at a stop token or because the receiver of the tokens said so; after
/// max_tokens; because it was cancelled; or because the context is full.
enum class FinishReason { stop, length, cancelled, context };
/// "stop", "length", "cancelled", "context".
std::string_view name(FinishReason reason);

/// What the receiver of a token wants: more, or an end for one of these reasons.
enum class Next { go_on, stop, cancel };

/// The tokens that may be drawn next: bit v mod 32 of word v / 32 is set for token v.
using TokenMask = std::vector<uint32_t>;

/// A prompt to continue. The functions are called from Engine::step, on its thread; they may submit
/// and cancel requests. Any of them may be empty.
struct Request {
  std::vector<int32_t> prompt;  // at least one token
  GenerationOptions options;
  int32_t adapter = kOwnAdapter;  // or kNoAdapter, or an index into the engine's adapters
  int64_t best = 0;               // so many of GeneratedToken::best
  bool routes = false;            // whether to fill GeneratedToken::routes

  /// Called once, before all others: so many of the prompt's tokens were in the cache.
  std::function<void(int64_t cached)> on_begin;
  /// Called for each new token.
  std::function<Next(const GeneratedToken&)> on_token;
  /// Called once, after the last token; not after Engine::cancel.
  std::function<void(FinishReason)> on_finish;
  /// Fills in which tokens may be drawn next, at least one of them. Called before each draw, after
  /// on_token of the token before. The mask comes with ⌈V/32⌉ words, all bits set.
  std::function<void(TokenMask&)> allow;
  /// The logits [rows, V] of the prompt's positions from `first` on, some rows at a time, in host
  /// memory. Where given, all of the prompt is computed, even what another request left in the
  /// cache.
  std::function<void(int64_t first, const Tensor& logits)> on_prompt_logits;
  /// Where the prompt's tokens from position `first` on went, some at a time, in order. Where
  /// given, all of the prompt is computed.
  std::function<void(int64_t first, const std::vector<TokenRoutes>& routes)> on_prompt_routes;
};

}  // namespace mixtral
