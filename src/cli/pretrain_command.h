#pragma once

#include <CLI/CLI.hpp>

namespace mixtral {

/// `mixtral pretrain`: train a model from scratch, or go on training one.
void add_pretrain_command(CLI::App& app);

}  // namespace mixtral
