#pragma once

#include "io/json.h"
#include "serve/chat_request.h"

namespace mixtral::serve {

/// A request of OpenAI's Responses API.
struct ResponsesRequest {
  ChatRequest chat;
  bool stream = false;
  /// What the answer says again of the request: instructions, tools, metadata, …
  nlohmann::ordered_json echoed;
};

/// Reads the body of POST /v1/responses. Throws ApiError 400 naming the field that is wrong or not
/// supported: what the server would have to remember (previous_response_id, conversation), images
/// and files, reasoning, the provider's own tools.
ResponsesRequest read_responses_request(const Json& body);

}  // namespace mixtral::serve
