#pragma once

#include "cli/command_line.h"

namespace mixtral {

/// `mixtral inspect template`: records as the tokens, and the loss mask, that training sees.
void add_inspect_template(cli::App& inspect);

}  // namespace mixtral
