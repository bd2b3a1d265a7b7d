#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "convert/conversion.h"

namespace mixtral {

/// Writes what stands beside the weights in a directory of the target's format: configuration,
/// tokenizer, chat template, generation settings. Returns the files' names.
std::vector<std::string> write_settings(const Conversion& conversion,
                                        const std::filesystem::path& directory);

}  // namespace mixtral
