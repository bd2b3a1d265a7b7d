#pragma once

#include <memory>
#include <string>

#include "io/json.h"
#include "serve/models.h"
#include "serve/router.h"

namespace mixtral::serve {

/// Answers a request to one model. Throws ApiError before anything is sent.
using ModelAnswer = void (*)(Service& service, const Json& body, const HttpHead& head,
                             const std::shared_ptr<Reply>& reply);

/// Adds a POST route whose body names a model ("model"; absent: the first). It is answered when
/// that is loaded. The models must outlive the router.
void add_model_route(Router& router, Models& models, const std::string& path, ModelAnswer answer,
                     ErrorWriter error = openai_error);

}  // namespace mixtral::serve
