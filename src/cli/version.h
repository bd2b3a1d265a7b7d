#pragma once

#include <string>

namespace mixtral {

/// "0.1.0", which CMakeLists.txt sets.
std::string version();

/// What --version prints: the version, the commit and kind of build, the instruction sets that
/// kernels use on this machine, and the backends.
std::string version_text();

}  // namespace mixtral
