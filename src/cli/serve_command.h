#pragma once

#include <CLI/CLI.hpp>

namespace mixtral {

/// `mixtral serve`: a model behind HTTP.
void add_serve_command(CLI::App& app);

}  // namespace mixtral
