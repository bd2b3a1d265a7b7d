#pragma once

#include <CLI/CLI.hpp>

namespace mixtral {

/// Adds `mixtral data stories | import | check`.
void add_data_command(CLI::App& app);

}  // namespace mixtral
