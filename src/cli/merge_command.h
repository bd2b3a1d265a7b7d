#pragma once

#include <CLI/CLI.hpp>

namespace mixtral {

/// `mixtral merge`: a model directory with the updates of adapters added to its weights.
void add_merge_command(CLI::App& app);

}  // namespace mixtral
