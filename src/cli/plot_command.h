#pragma once

#include "cli/command_line.h"

namespace mixtral {

/// `mixtral plot`: draw the metrics of one or several runs.
void add_plot_command(cli::App& app);

}  // namespace mixtral
