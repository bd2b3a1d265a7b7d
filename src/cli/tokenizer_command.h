#pragma once

#include "cli/command_line.h"

namespace mixtral {

/// Adds `mixtral tokenizer train | encode | decode | info`.
void add_tokenizer_command(cli::App& app);

}  // namespace mixtral
