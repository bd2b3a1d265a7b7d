#pragma once

#include "cli/command_line.h"

namespace mixtral {

/// Thrown by a command that ends with a code of its own: 128+n after signal n.
struct ExitStatus {
  int code = 0;
};

/// help, completion and man.
void add_reference_commands(cli::App& app);

/// Adds every subcommand to the program.
void add_commands(cli::App& app);

}  // namespace mixtral
