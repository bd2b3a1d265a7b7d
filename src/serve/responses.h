#pragma once

#include "serve/chat_answer.h"
#include "serve/models.h"
#include "serve/responses_request.h"
#include "serve/router.h"

namespace mixtral::serve {

/// OpenAI's Responses API for text and calls of functions: POST /v1/responses. No answer is kept.
/// The models must outlive the router.
void add_responses_routes(Router& router, Models& models);

/// An answer as a response object, or as a stream of events that make one.
std::shared_ptr<ChatAnswer> make_response(std::shared_ptr<Reply> reply, const std::string& model,
                                          const ResponsesRequest& request);

}  // namespace mixtral::serve
