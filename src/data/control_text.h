#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace mixtral {

/// The control tokens ("<s>", "</s>", …) that a text spells out. Training and prompts take them for
/// ordinary text, whoever wrote them probably not.
std::vector<std::string> spelled_controls(const Tokenizer& tokenizer, std::string_view text);

}  // namespace mixtral
