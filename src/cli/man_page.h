#pragma once

#include <string>

#include "cli/command_table.h"

namespace mixtral {

/// The manual page of the program and all of its commands, as roff for `man -l -`.
std::string man_page(const CommandRow& root, const std::string& version);

}  // namespace mixtral
