#pragma once

#include "cli/command_line.h"

namespace mixtral {

/// Adds `mixtral convert`: writes a model in another program's format, with a receipt, and checks
/// such a receipt again.
void add_convert_command(cli::App& app);

}  // namespace mixtral
