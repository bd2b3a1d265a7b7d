#include "io/disk_space.h"

#include <fmt/format.h>

#include "base/error.h"

namespace mixtral {

void require_disk_space(const std::filesystem::path& path, uint64_t bytes) {
  namespace fs = std::filesystem;
  std::error_code error;
  fs::path folder = fs::absolute(path, error).parent_path();
  while (!fs::exists(folder, error) && folder.has_relative_path()) folder = folder.parent_path();
  const auto space = fs::space(folder, error);
  if (!error && space.available < bytes)
    throw Error(
        fmt::format("cannot write {}: it needs {} bytes, but its disk has only {} free; free some "
                    "space or choose another place",
                    path.string(), bytes, space.available));
}

}  // namespace mixtral
