#pragma once

#include "cli/command_line.h"

namespace mixtral {

/// `mixtral evaluate`: loss and perplexity of a model on data.
void add_evaluate_command(cli::App& app);
/// `mixtral inspect`: gradients of a batch, and which experts tokens go to.
void add_inspect_command(cli::App& app);
/// `mixtral info`: a model's parameters, and the memory that running it needs.
void add_info_command(cli::App& app);

}  // namespace mixtral
