#pragma once

#include "serve/router.h"
#include "serve/service.h"

namespace mixtral::serve {

// Each protocol adds its routes to a router. The service must outlive the router.

/// /v1/models, /v1/completions, /v1/chat/completions.
void add_openai_routes(Router& router, Service& service);
/// /tokenize, /detokenize, /apply-template.
void add_text_routes(Router& router, Service& service);
/// /metrics in Prometheus's text format.
void add_metrics_route(Router& router, Service& service);

}  // namespace mixtral::serve
