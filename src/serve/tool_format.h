#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "serve/chat_request.h"

namespace mixtral::serve {

/// How a model writes calls of tools.
enum class ToolFormat {
  /// [TOOL_CALLS] [{"name": "f", "arguments": {...}}, ...]: Mistral's, in models whose template has
  /// tools.
  mistral,
  /// <tool_call>, {"name": "f", "arguments": {...}} and </tool_call>, a line each, for each call:
  /// Hermes', and most others' with ChatML.
  hermes,
  /// The same on one line, for models that learnt no tools: a text in the prompt says how. One call
  /// an answer, since such models do not know when to stop.
  generic,
};

/// The format that a chat template (Jinja) asks for; generic where it has no place for tools.
ToolFormat tool_format(std::string_view template_source);

/// The text that a call begins with: a control token in some vocabularies.
std::string_view tool_marker(ToolFormat format);

/// A request's messages as its template reads them. `generic`: the tools, the calls and their
/// results are text of the user's and the assistant's turns. Others: calls have their arguments as
/// an object.
nlohmann::ordered_json messages_with_tools(ToolFormat format, const ChatRequest& request);
/// The tools as templates read them; null where there are none, or none are to be called.
nlohmann::ordered_json tools_for_template(const ChatRequest& request);

}  // namespace mixtral::serve
