#pragma once

#include "cli/command_line.h"
#include "cli/command_table.h"

namespace mixtral {

/// What a command, and all below it, accept, as its options were added.
CommandRow describe(const cli::App& command);

}  // namespace mixtral
