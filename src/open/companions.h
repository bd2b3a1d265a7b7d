#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace mixtral {

/// Whether a file of this name belongs to a tokenizer, of whatever kind.
bool is_tokenizer_file(std::string_view name);

/// Whether a file of a model's directory stays true when its weights change: tokenizers, chat
/// templates, generation settings, licences.
bool is_companion(std::string_view name);

/// Copies the companions of a model's directory into another, over files of the same names; links
/// are followed. Returns the names. Throws Error when one cannot be copied.
std::vector<std::string> copy_companions(const std::filesystem::path& from,
                                         const std::filesystem::path& to);

}  // namespace mixtral
