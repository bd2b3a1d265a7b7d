#pragma once

#include "cli/command_line.h"

namespace mixtral {

/// `mixtral generate`: continue a prompt, or look at what a model thinks comes next.
void add_generate_command(cli::App& app);

}  // namespace mixtral
