#pragma once

#include <CLI/CLI.hpp>

namespace mixtral {

/// `mixtral plot`: draw the metrics of one or several runs.
void add_plot_command(CLI::App& app);

}  // namespace mixtral
