#pragma once

#include "cli/command_line.h"

namespace mixtral {

/// Adds `mixtral bench serve`: many streams at once from any OpenAI-compatible server, with the
/// times of their tokens.
void add_bench_serve_command(cli::App& bench);

}  // namespace mixtral
