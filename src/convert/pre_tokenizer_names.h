#pragma once

#include <optional>
#include <string>

#include "io/json.h"

namespace mixtral {

/// The name that llama.cpp gives to how a byte-level tokenizer.json splits texts before it merges
/// ("llama-bpe", "tekken"); nothing where it has none.
std::optional<std::string> pre_tokenizer_name(const Json& tokenizer);

}  // namespace mixtral
