#pragma once

#include "serve/models.h"
#include "serve/router.h"

namespace mixtral::serve {

/// GET /experts: how many tokens each expert of each layer of a model (?model=NAME; absent: the
/// first) has taken since it was loaded, or with ?window=SECONDS in the last so many:
///   {layers, experts, experts_per_token, tokens, seconds, counts: [layers][experts]}
/// The models must outlive the router.
void add_experts_route(Router& router, Models& models);

}  // namespace mixtral::serve
