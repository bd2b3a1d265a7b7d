#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace mixtral {

/// A name for what will be renamed to `name` when it is whole: ".NAME.mixtral-tmp-" and 16 random
/// hexadecimal digits. No user chooses such a name, and nobody can foresee it.
std::string temporary_name(std::string_view name);

/// Whether a name has that form.
bool is_temporary_name(std::string_view name);

/// Removes the files and folders with such names directly in `directory`: what a killed process
/// left half written. A link is removed itself, never what it leads to. Returns what was removed.
std::vector<std::filesystem::path> remove_temporaries(const std::filesystem::path& directory);

}  // namespace mixtral
