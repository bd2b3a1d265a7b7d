#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace mixtral {

/// What is wrong with a value or a flag, in the words of this program's errors: CLI11's message
/// without its noise.
std::string flag_error(const CLI::Error& error);

/// One sentence for a command line that could not be read: what is wrong, the nearest command or
/// flag where one is unknown, and where the help is.
std::string usage_error(const CLI::App& app, const CLI::ParseError& error);

}  // namespace mixtral
