#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "infer/text_stream.h"
#include "serve/generation.h"
#include "text/tokenizer.h"

namespace mixtral::serve {

/// One answer while the engine makes it: turns tokens into text, keeps its filter, and tells the
/// listener. Used on the engine's thread alone.
class AnswerRun : public std::enable_shared_from_this<AnswerRun> {
 public:
  /// All must outlive this. `index` is the answer's number in the request.
  AnswerRun(const GenerationRequest& request, int64_t index, const Tokenizer& tokenizer,
            GenerationListener& listener);

  /// What the engine is asked for. `done` is called once, when the answer is complete, with the
  /// error where it failed.
  using Done = std::function<void(const ApiError* error)>;
  Request request(Done done);

  const Finish& finish() const { return finish_; }

 private:
  Next on_token(const GeneratedToken& token);
  void on_finish(FinishReason reason);
  void on_prompt_logits(int64_t first, const Tensor& logits);
  void on_prompt_routes(const std::vector<TokenRoutes>& routes);
  void allow(TokenMask& mask);
  void fail();
  TokenInfo info(int32_t id) const;
  bool reports_tokens() const { return request_.logprobs || request_.experts; }
  std::string take_text();

  const GenerationRequest& request_;
  size_t choice_;
  int64_t index_;
  const Tokenizer& tokenizer_;
  GenerationListener& listener_;
  Done done_;
  std::unique_ptr<TokenFilter> filter_;
  std::string ready_;  // text that is final and not told yet
  TextStream text_;
  std::vector<TokenInfo> prompt_;
  std::optional<ApiError> error_;
  bool must_end_ = false;  // the filter allows nothing more
  Finish finish_;
};

/// The bytes that a token adds to a text; empty for control tokens and ids without text.
std::string token_bytes(const Tokenizer& tokenizer, int32_t id);

}  // namespace mixtral::serve
