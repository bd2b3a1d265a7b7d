#pragma once

#include <CLI/CLI.hpp>

namespace mixtral {

/// `mixtral chat`: a conversation with a model in the terminal.
void add_chat_command(CLI::App& app);

}  // namespace mixtral
