#pragma once

#include "cli/command_line.h"

namespace mixtral {

/// `mixtral merge`: a model directory with the updates of adapters added to its weights.
void add_merge_command(cli::App& app);

}  // namespace mixtral
