#pragma once

#include <CLI/CLI.hpp>

namespace mixtral {

/// `mixtral inspect experts`: what the experts do with some data.
void add_inspect_experts(CLI::App& inspect);
/// `mixtral inspect route`: where each token of a text goes.
void add_inspect_route(CLI::App& inspect);

}  // namespace mixtral
