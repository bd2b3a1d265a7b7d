#pragma once

#include <CLI/CLI.hpp>

#include "cli/command_table.h"

namespace mixtral {

/// What a command, and all below it, accept, as its options were added.
CommandRow describe(const CLI::App& command);

}  // namespace mixtral
