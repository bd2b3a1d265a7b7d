#pragma once

#include "serve/chat_answer.h"
#include "serve/responses_request.h"
#include "serve/router.h"
#include "serve/service.h"

namespace mixtral::serve {

/// OpenAI's Responses API for text and calls of functions: POST /v1/responses. No answer is kept.
/// The service must outlive the router.
void add_responses_routes(Router& router, Service& service);

/// An answer as a response object, or as a stream of events that make one.
std::shared_ptr<ChatAnswer> make_response(std::shared_ptr<Reply> reply, const std::string& model,
                                          const ResponsesRequest& request);

}  // namespace mixtral::serve
