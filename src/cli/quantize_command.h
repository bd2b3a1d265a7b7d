#pragma once

#include "cli/command_line.h"

namespace mixtral {

/// Adds `mixtral quantize`: writes a model in few bits, with or without a text that says what
/// matters, and shows what that did to it.
void add_quantize_command(cli::App& app);

}  // namespace mixtral
