#pragma once

#include "serve/chat_answer.h"
#include "serve/models.h"
#include "serve/router.h"

namespace mixtral::serve {

/// Anthropic's Messages API: POST /v1/messages and /v1/messages/count_tokens, with errors in its
/// shape. The models must outlive the router.
void add_anthropic_routes(Router& router, Models& models);

/// An answer as a message: whole, or as a stream of events.
std::shared_ptr<ChatAnswer> make_message(std::shared_ptr<Reply> reply, std::string model,
                                         bool stream);

/// {"type": "error", "error": {type, message}}.
HttpResponse anthropic_error(const ApiError& error);

}  // namespace mixtral::serve
