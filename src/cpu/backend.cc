#include "cpu/backend.h"

#include <fmt/format.h>
#include <hwy/highway.h>

#include <fstream>

namespace mixtral::cpu {

std::string CpuBackend::description() const {
  std::string model = "CPU", line;
  for (std::ifstream in("/proc/cpuinfo"); std::getline(in, line);) {
    if (line.starts_with("model name") && line.find(": ") != std::string::npos) {
      model = line.substr(line.find(": ") + 2);
      break;
    }
  }
  // The lowest set bit is the best target that the machine supports.
  const int64_t targets = hwy::SupportedTargets();
  return fmt::format("{}, {} threads, {}", model, pool_.size(),
                     hwy::TargetName(targets & -targets));
}

}  // namespace mixtral::cpu
