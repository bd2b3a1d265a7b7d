#pragma once

#include <string>

#include "cli/command_table.h"

namespace mixtral {

/// The help of a command within 40 lines of 80 columns: the options that people use, in groups, the
/// first clause of what each does, and examples.
std::string short_help(const CommandRow& command);

/// All options, with all of their descriptions, choices and defaults, in 80 columns.
std::string full_help(const CommandRow& command);

/// A text in lines of at most `width` columns, each after `indent` spaces; words longer than that
/// have a line of their own.
std::string wrapped(const std::string& text, size_t indent, size_t width = 80);

/// The command lines that a command's footer has as examples.
std::vector<std::string> examples_of(const CommandRow& command);

}  // namespace mixtral
