#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "infer/request.h"
#include "serve/api_error.h"

namespace mixtral::serve {

/// Decides token by token what one answer may contain. Used on the engine's thread alone.
class TokenFilter {
 public:
  virtual ~TokenFilter() = default;
  /// Clears the bits of the tokens that may not come next. Stop tokens are not its business: they
  /// are allowed exactly where can_end() says so.
  virtual void allow(TokenMask& mask) = 0;
  /// The token came.
  virtual void accept(int32_t token) = 0;
  /// Whether the text may end here.
  virtual bool can_end() const = 0;
};

/// A prompt and how to continue it, whatever the protocol. Its answers are numbered from
/// `first_choice` on.
struct GenerationRequest {
  std::vector<int32_t> prompt;
  GenerationOptions options;      // stop_ids too; the seed of answer i is seed + i
  std::vector<std::string> stop;  // texts that end an answer, and are no part of it
  int64_t answers = 1;            // n
  int32_t adapter = kOwnAdapter;
  /// False once the adapter is unloaded: its number may be another's by then. Null: it stays.
  std::shared_ptr<const std::atomic<bool>> adapter_is_there;
  std::optional<int64_t> logprobs;         // report tokens, with so many alternatives
  std::optional<int64_t> prompt_logprobs;  // the same of the prompt's tokens
  bool experts = false;                    // report the experts of each token
  bool prompt_experts = false;  // and those of the prompt's tokens, with the first answer
  /// A filter for one answer; empty: everything is allowed.
  std::function<std::unique_ptr<TokenFilter>()> filter;
  size_t first_choice = 0;
};

/// A token and what else could have come.
struct TokenInfo {
  int32_t id = 0;
  std::string bytes;                   // what it adds to the text; empty for control tokens
  std::optional<double> logprob;       // nothing: the first of a prompt
  std::vector<TokenProbability> best;  // the most probable ones in order
  TokenRoutes routes;                  // where asked for
};

/// A part of an answer. Where logprobs or experts are asked for there is one for each token, else
/// only where there is text.
struct TextPiece {
  std::string text;  // whole characters, final
  std::vector<TokenInfo> tokens;
};

/// How an answer ended.
struct Finish {
  FinishReason reason = FinishReason::stop;  // not `cancelled`: that is an error
  std::string stop_text;                     // the stop text that ended it; empty: none did
  int64_t tokens = 0;                        // made, stop tokens not counted
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;  // of the prompt, that were in the cache already
};

/// Is told what becomes of a job. All functions are called on the engine's thread, one at a time,
/// and must not block.
class GenerationListener {
 public:
  virtual ~GenerationListener() = default;
  /// The prompt's tokens, where prompt_logprobs is set; before all text of that choice.
  virtual void on_prompt(size_t choice, std::vector<TokenInfo>&& tokens);
  /// The experts of the prompt's next tokens, where prompt_experts is set; before all text of that
  /// choice.
  virtual void on_prompt_routes(size_t choice, const std::vector<TokenRoutes>& routes);
  virtual void on_piece(size_t choice, const TextPiece& piece) = 0;
  virtual void on_finish(size_t choice, const Finish& finish) = 0;
  /// All answers of all requests of the job are complete. Nothing is called afterwards.
  virtual void on_done() = 0;
  /// The job failed or was ended by the server. Nothing is called afterwards.
  virtual void on_error(const ApiError& error) = 0;
};

}  // namespace mixtral::serve
