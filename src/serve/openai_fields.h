#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "serve/chat_request.h"
#include "serve/fields.h"

namespace mixtral::serve {

// The fields that OpenAI's routes share. All functions throw ApiError 400 naming the field.

/// temperature, top_p, seed, n, stop, penalties, logit_bias, and this server's top_k, min_p,
/// repeat_penalty, ignore_eos, experts, prompt_experts, grammar and regex. Not max_tokens and
/// logprobs, in which the routes differ.
AnswerOptions read_answer_options(Fields& fields);
/// Adds response_format.
void read_response_format(Fields& fields, OutputRule& rule);
/// Takes what changes nothing here: user, store, metadata, ...
void ignore_harmless(Fields& fields);

struct StreamOptions {
  bool stream = false;
  bool include_usage = false;
};
StreamOptions read_stream_options(Fields& fields);

/// The body of /v1/chat/completions, but for what says how it is sent.
ChatRequest read_chat_request(Fields& fields);
/// messages, tools, tool_choice and parallel_tool_calls.
void read_conversation(Fields& fields, ChatRequest& request);

/// Adds a function that the model may call. `path` is where its name stands. Throws where the name
/// is not 1 to 128 letters, digits, '_', '-' and '.', where another tool has it, or where there are
/// 512 tools already.
void add_tool(std::vector<Tool>& tools, Tool tool, const std::string& path);

/// The same value for building and writing.
nlohmann::ordered_json to_ordered(const Json& json);
/// As one line of JSON; bytes that are not UTF-8 become U+FFFD.
std::string to_line(const nlohmann::ordered_json& json);

}  // namespace mixtral::serve
