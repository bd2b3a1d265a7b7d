#pragma once

#include <cstddef>
#include <span>

namespace mixtral {

/// Tells the system that the whole pages of a mapped file's bytes are not needed in memory now.
/// They are read again where they are used again. For passes over files that are larger than the
/// memory.
void release_pages(std::span<const std::byte> mapped);

}  // namespace mixtral
