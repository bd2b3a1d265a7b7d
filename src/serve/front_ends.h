#pragma once

#include "serve/models.h"
#include "serve/router.h"

namespace mixtral::serve {

// Each protocol adds its routes to a router. The models must outlive the router.

/// /v1/models, /v1/completions, /v1/chat/completions.
void add_openai_routes(Router& router, Models& models);
/// /tokenize, /detokenize, /apply-template.
void add_text_routes(Router& router, Models& models);
/// /metrics in Prometheus's text format.
void add_metrics_route(Router& router, Models& models);

}  // namespace mixtral::serve
