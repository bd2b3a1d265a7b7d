#pragma once

#include "cli/command_line.h"

namespace mixtral {

/// `mixtral finetune`: tunes a model, or an adapter on it, on texts, conversations or preferences.
void add_finetune_command(cli::App& app);

}  // namespace mixtral
