#pragma once

#include <memory>

#include "io/json.h"
#include "serve/http.h"
#include "serve/service.h"

namespace mixtral::serve {

/// POST /v1/chat/completions: one object, or a stream of chunks. Throws ApiError before anything is
/// sent.
void answer_chat(Service& service, const Json& body, const HttpHead& head,
                 const std::shared_ptr<Reply>& reply);

}  // namespace mixtral::serve
