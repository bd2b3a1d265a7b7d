#pragma once

#include <CLI/CLI.hpp>

namespace mixtral {

/// `mixtral tokenizer template`: conversations as a model's own chat template writes them.
void add_tokenizer_template(CLI::App& tokenizer);

}  // namespace mixtral
