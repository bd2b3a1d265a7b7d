#pragma once

#include <string>

#include "cli/command_line.h"

namespace mixtral {

/// What is wrong with a value or a flag, in the words of this program's errors: CLI11's message
/// without its noise.
std::string flag_error(const cli::Error& error);

/// Makes every number among the flags of a command, and of its subcommands, be read as it is
/// written, in decimal, or refused: 010 is ten, 0x10 and -1 for what counts from 0 are errors, and
/// so is what does not fit. Also of values that a file sets (RunConfig).
void read_numbers_as_written(cli::App& app);

/// One sentence for a command line that could not be read: what is wrong, the nearest command or
/// flag where one is unknown, and where the help is.
std::string usage_error(const cli::App& app, const cli::ParseError& error);

}  // namespace mixtral
