#include "tests/support/source_directory.h"

namespace mixtral {

std::filesystem::path source_directory() { return MIXTRAL_SOURCE_DIR; }

}  // namespace mixtral
