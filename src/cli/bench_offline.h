#pragma once

#include "cli/command_line.h"

namespace mixtral {

/// Adds `mixtral bench serve-offline`: a fixed set of requests, all there at once, in this process.
void add_bench_offline_command(cli::App& bench);

}  // namespace mixtral
