#pragma once

#include "cli/command_line.h"

namespace mixtral {

/// `mixtral experts`: makes models of others' experts.
void add_experts_command(cli::App& app);

}  // namespace mixtral
