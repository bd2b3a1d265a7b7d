#pragma once

#include <string_view>

namespace mixtral {

/// Throws Error where `text`, the contents of the file `source`, is a pointer that git-lfs leaves
/// in the place of a file that was not downloaded
/// (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md).
void refuse_git_lfs_pointer(std::string_view text, std::string_view source);

}  // namespace mixtral
