#pragma once

#include <filesystem>

namespace mixtral {

/// The repository's root. One file knows it, so that a checkout elsewhere compiles that one alone
/// again.
std::filesystem::path source_directory();

}  // namespace mixtral
