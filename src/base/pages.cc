#include "base/pages.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

namespace mixtral {

void release_pages(std::span<const std::byte> mapped) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(mapped.data());
  const uintptr_t before = (page - begin % page) % page;  // bytes in front of the first whole page
  if (mapped.size() < before + page) return;
  const std::span<const std::byte> rest = mapped.subspan(before);
  // Advice alone: where it is not taken, memory stays in use and nothing else changes.
  ::madvise(const_cast<std::byte*>(rest.data()), rest.size() / page * page, MADV_DONTNEED);
}

}  // namespace mixtral
