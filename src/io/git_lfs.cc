#include "io/git_lfs.h"

#include <fmt/format.h>

#include "base/error.h"

namespace mixtral {

void refuse_git_lfs_pointer(std::string_view text, std::string_view source) {
  if (!text.starts_with("version https://git-lfs.github.com/spec/") &&
      !text.starts_with("version https://hawser.github.com/spec/"))
    return;
  throw Error(
      fmt::format("{}: is a git-lfs pointer, not the file itself, which was not downloaded; run "
                  "`git lfs pull` in its folder, or download the file",
                  source));
}

}  // namespace mixtral
