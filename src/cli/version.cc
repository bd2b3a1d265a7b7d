#include "cli/version.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "backends/registry.h"
#include "build_commit.h"

namespace mixtral {

std::string version() { return MIXTRAL_VERSION; }

std::string version_text() {
  return fmt::format(
      "mixtral {}\ncommit        {}\nbuild         {}, {}\nprocessor     {}\nbackends      {}",
      version(), MIXTRAL_COMMIT, MIXTRAL_BUILD_TYPE, MIXTRAL_COMPILER,
      make_backend("cpu")->description(), fmt::join(backend_names(), ", "));
}

}  // namespace mixtral
