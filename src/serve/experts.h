#pragma once

#include "serve/expert_history.h"
#include "serve/router.h"

namespace mixtral::serve {

/// GET /experts: how many tokens each expert of each layer has taken since the start, or with
/// ?window=SECONDS in the last so many:
///   {layers, experts, experts_per_token, tokens, seconds, counts: [layers][experts]}
/// The history must outlive the router.
void add_experts_route(Router& router, const ExpertHistory& history);

}  // namespace mixtral::serve
