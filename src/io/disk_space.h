#pragma once

#include <cstdint>
#include <filesystem>

namespace mixtral {

/// Throws Error where the disk that will hold `path`, which need not exist yet, has fewer than
/// `bytes` bytes free.
void require_disk_space(const std::filesystem::path& path, uint64_t bytes);

}  // namespace mixtral
