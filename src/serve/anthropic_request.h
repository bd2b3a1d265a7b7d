#pragma once

#include "io/json.h"
#include "serve/chat_request.h"

namespace mixtral::serve {

/// A request of Anthropic's Messages API.
struct MessagesRequest {
  ChatRequest chat;
  bool stream = false;
};

/// Reads the body of POST /v1/messages. Throws ApiError 400 naming the field that is wrong or not
/// supported: images, documents, thinking, the provider's own tools. An assistant's turn at the
/// end is the beginning of the answer.
MessagesRequest read_messages_request(const Json& body);

/// Reads the body of POST /v1/messages/count_tokens: the conversation alone.
ChatRequest read_count_request(const Json& body);

}  // namespace mixtral::serve
