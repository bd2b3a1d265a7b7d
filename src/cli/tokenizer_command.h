#pragma once

#include <CLI/CLI.hpp>

namespace mixtral {

/// Adds `mixtral tokenizer train | encode | decode | info`.
void add_tokenizer_command(CLI::App& app);

}  // namespace mixtral
