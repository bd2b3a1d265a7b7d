#include "tests/support/source_directory.h"

namespace mixtral::testing {

std::filesystem::path source_directory() { return MIXTRAL_SOURCE_DIR; }

}  // namespace mixtral::testing
