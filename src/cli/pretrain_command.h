#pragma once

#include "cli/command_line.h"

namespace mixtral {

/// `mixtral pretrain`: train a model from scratch, or go on training one.
void add_pretrain_command(cli::App& app);

}  // namespace mixtral
