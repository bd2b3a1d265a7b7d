#pragma once

#include "cli/command_line.h"

namespace mixtral {

/// `mixtral chat`: a conversation with a model in the terminal.
void add_chat_command(cli::App& app);

}  // namespace mixtral
