#pragma once

#include <string>
#include <string_view>

#include "cli/command_table.h"

namespace mixtral {

/// The script that makes a shell complete commands, options, and values where only some are
/// accepted. `shell` is bash, zsh or fish.
std::string completion_script(const CommandRow& root, std::string_view shell);

}  // namespace mixtral
