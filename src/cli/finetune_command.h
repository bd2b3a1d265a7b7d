#pragma once

#include <CLI/CLI.hpp>

namespace mixtral {

/// `mixtral finetune`: tunes a model, or an adapter on it, on texts, conversations or preferences.
void add_finetune_command(CLI::App& app);

}  // namespace mixtral
