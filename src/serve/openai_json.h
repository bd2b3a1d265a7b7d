#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "serve/api_error.h"
#include "serve/generation.h"
#include "serve/http.h"
#include "serve/server_sent_events.h"
#include "text/tokenizer.h"

namespace mixtral::serve {

/// What every object of one answer begins with.
struct AnswerHead {
  std::string id, object, model;
  int64_t created = 0;  // Unix seconds

  nlohmann::ordered_json json() const;
};
/// With a new id: "chatcmpl-…".
AnswerHead new_answer(const std::string& prefix, std::string object, std::string model);
/// So many random characters of an id.
std::string random_id(size_t size = 24);
int64_t unix_seconds();

struct TokenCounts {
  int64_t prompt = 0, cached = 0, completion = 0;
};
/// OpenAI's usage object.
nlohmann::ordered_json usage_json(const TokenCounts& counts);

/// A token as text: bytes that are no character become U+FFFD, control tokens their name.
std::string token_text(const Tokenizer& tokenizer, const TokenInfo& token);

/// Chat's {"content": [{token, logprob, bytes, top_logprobs}], "refusal": null}.
nlohmann::ordered_json chat_logprobs(const Tokenizer& tokenizer,
                                     const std::vector<TokenInfo>& tokens);

/// A completion's {tokens, token_logprobs, top_logprobs, text_offset}, part by part.
class CompletionLogprobs {
 public:
  explicit CompletionLogprobs(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
  /// Offsets go on where the last part ended, in characters.
  nlohmann::ordered_json part(const std::vector<TokenInfo>& tokens);

 private:
  const Tokenizer& tokenizer_;
  int64_t offset_ = 0;
};

/// [{ids, weights}] for each token: its experts and their weights, [layers][experts a token].
nlohmann::ordered_json experts_json(const std::vector<TokenInfo>& tokens, int64_t layers);
/// The same, after those that `json` has already.
void add_routes(nlohmann::ordered_json& json, const std::vector<TokenRoutes>& all, int64_t layers);

/// The end of a stream of chunks: one with the usage where it is given, and [DONE].
void end_chunks(EventStream& events, const AnswerHead& head,
                const std::optional<TokenCounts>& usage);
/// Ends an answer with an error: a plain one before the first event, else the last event.
void fail_chunks(EventStream& events, const ApiError& error);

HttpResponse json_response(const nlohmann::ordered_json& json);

/// Who takes turns with others: the key that a client sent, and its address.
std::string client_of(const HttpHead& head);

}  // namespace mixtral::serve
