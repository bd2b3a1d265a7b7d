#pragma once

#include "cli/command_line.h"

namespace mixtral {

/// `mixtral tokenizer template`: conversations as a model's own chat template writes them.
void add_tokenizer_template(cli::App& tokenizer);

}  // namespace mixtral
