#include <fcntl.h>
#include <unistd.h>

#include "cli/common.h"

namespace {

/// Opens the standard descriptors that the caller closed, so that no file takes their numbers and
/// gets what is meant for them. Writing to a standard output that was closed stays an error.
void open_standard_descriptors() {
  for (const int descriptor : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (::fcntl(descriptor, F_GETFD) < 0)  // the lowest free number is this one
      ::open("/dev/null", descriptor == STDERR_FILENO ? O_WRONLY : O_RDONLY);
}

}  // namespace

int main(int argc, char** argv) {
  open_standard_descriptors();
  return mixtral::run_command_line(argc, argv);
}
