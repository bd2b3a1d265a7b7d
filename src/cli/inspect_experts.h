#pragma once

#include "cli/command_line.h"

namespace mixtral {

/// `mixtral inspect experts`: what the experts do with some data.
void add_inspect_experts(cli::App& inspect);
/// `mixtral inspect route`: where each token of a text goes.
void add_inspect_route(cli::App& inspect);

}  // namespace mixtral
