#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "serve/generation.h"

namespace mixtral::serve {

/// What the text of an answer has to be.
struct OutputRule {
  enum class Kind { none, json_object, json_schema, grammar, regex };
  Kind kind = Kind::none;
  std::string text;   // the schema as JSON, the grammar (GBNF) or the regular expression
  std::string field;  // of the request, for errors: "response_format.json_schema.schema"
};

/// A function that the model may call.
struct Tool {
  std::string name, description;
  nlohmann::ordered_json parameters;  // its JSON schema; null: any object
};

struct ToolChoice {
  enum class Kind { none, automatic, required, named };
  Kind kind = Kind::automatic;
  std::string name;  // of `named`
};

/// How an answer is drawn and reported: what is alike in all routes.
struct AnswerOptions {
  float temperature = 1, top_p = 1, min_p = 0, repeat_penalty = 1;
  int32_t top_k = 0;
  float presence_penalty = 0, frequency_penalty = 0;
  std::optional<uint64_t> seed;
  std::optional<int64_t> max_tokens;  // nothing: what the context leaves
  int64_t n = 1;
  std::vector<std::string> stop;
  std::vector<std::pair<int32_t, float>> logit_bias;
  bool ignore_eos = false;
  std::optional<int64_t> logprobs;  // with so many alternatives
  bool experts = false;             // the experts of each token
  bool prompt_experts = false;      // and of the prompt's tokens
  OutputRule rule;
};

/// A conversation to be continued, whatever the protocol that it came by.
struct ChatRequest {
  std::string model;
  /// In OpenAI's shape, checked: role system, user, assistant or tool; content text or null;
  /// tool_calls of an assistant's message (with `arguments` as text), tool_call_id of a tool's.
  nlohmann::ordered_json messages = nlohmann::ordered_json::array();
  std::vector<Tool> tools;
  ToolChoice tool_choice;
  bool parallel_tool_calls = true;
  AnswerOptions answer;
  std::string client;  // who takes turns with others
};

/// What an answer grows by.
struct ChatDelta {
  struct ToolCall {
    size_t index = 0;
    std::string id, name;   // in the first delta of a call, else empty
    std::string arguments;  // JSON, a part of it
  };
  std::string content;
  std::vector<ToolCall> tool_calls;
  std::vector<TokenInfo> tokens;  // where logprobs or experts are asked for
};

struct ChatFinish {
  enum class Reason { stop, length, tool_calls };
  Reason reason = Reason::stop;
  std::string stop_text;  // the stop text of the request that ended it; empty: none did
  int64_t tokens = 0, prompt_tokens = 0, cached_tokens = 0;
};

/// Is told what becomes of a conversation's answers. All functions are called on the engine's
/// thread, one at a time, and must not block.
class ChatListener {
 public:
  virtual ~ChatListener() = default;
  /// The experts of the prompt's next tokens, where asked for; before the first delta.
  virtual void on_prompt_routes(size_t /*choice*/, const std::vector<TokenRoutes>& /*routes*/) {}
  virtual void on_delta(size_t choice, const ChatDelta& delta) = 0;
  virtual void on_finish(size_t choice, const ChatFinish& finish) = 0;
  virtual void on_done() = 0;
  virtual void on_error(const ApiError& error) = 0;
};

}  // namespace mixtral::serve
