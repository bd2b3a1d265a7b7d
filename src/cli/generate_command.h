#pragma once

#include <CLI/CLI.hpp>

namespace mixtral {

/// `mixtral generate`: continue a prompt, or look at what a model thinks comes next.
void add_generate_command(CLI::App& app);

}  // namespace mixtral
