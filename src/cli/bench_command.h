#pragma once

#include "cli/command_line.h"

namespace mixtral {

/// Adds `mixtral bench`: speed of training and generation with random weights, beside the
/// machine's ceilings, measured in the same process.
void add_bench_command(cli::App& app);

}  // namespace mixtral
