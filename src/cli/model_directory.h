#pragma once

#include <filesystem>
#include <optional>

namespace mixtral {

/// The first entry of a directory, by name, that no program which writes models puts there: another
/// file, a folder, a link. Nothing when all are a model's, so that the directory may be replaced.
std::optional<std::filesystem::path> first_foreign_entry(const std::filesystem::path& directory);

}  // namespace mixtral
