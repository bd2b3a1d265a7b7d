#pragma once

#include "constrain/grammar.h"
#include "serve/chat_request.h"
#include "serve/tool_format.h"

namespace mixtral::serve {

/// Whether the text that a call begins with is text in the answer, or a control token that leaves
/// none.
enum class MarkerText { shown, hidden };

/// What an answer to a request with tools may be: by tool_choice calls of tools whose arguments are
/// valid, or text, which calls may follow. Throws ApiError 400 naming the tool whose parameters
/// cannot be kept.
constrain::Grammar tool_grammar(const ChatRequest& request, ToolFormat format, MarkerText marker);

}  // namespace mixtral::serve
