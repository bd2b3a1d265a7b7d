#pragma once

#include "cli/command_line.h"

namespace mixtral {

/// `mixtral serve`: a model behind HTTP.
void add_serve_command(cli::App& app);

}  // namespace mixtral
