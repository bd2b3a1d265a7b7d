#include "ops/host_backend.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <string>

namespace mixtral {
namespace {

void copy(const Tensor& from, const Tensor& to) {
  CHECK(from.dtype() == to.dtype() && from.numel() == to.numel(),
        from.shape().to_string() + " to " + to.shape().to_string());
  if (from.numel() > 0) std::memcpy(to.data(), from.data(), static_cast<size_t>(from.bytes()));
}

/// The number in a one-number file, or `otherwise` when there is none ("max" included).
int64_t read_number(const char* path, int64_t otherwise) {
  std::ifstream in(path);
  int64_t value = 0;
  return in >> value ? value : otherwise;
}

}  // namespace

Backend::MemoryInfo HostBackend::memory() const {
  MemoryInfo info;
  std::ifstream in("/proc/meminfo");
  std::string key, unit;
  for (int64_t kilobytes = 0; in >> key >> kilobytes; std::getline(in, unit)) {
    if (key == "MemTotal:") info.total = kilobytes * 1024;
    if (key == "MemAvailable:") info.available = kilobytes * 1024;
  }
  const int64_t limit = read_number("/sys/fs/cgroup/memory.max", info.total);
  if (limit < info.total) {
    const int64_t used = read_number("/sys/fs/cgroup/memory.current", 0);
    info.total = limit;
    info.available = std::min(info.available, std::max<int64_t>(limit - used, 0));
  }
  return info;
}

void HostBackend::upload(const Tensor& host, const Tensor& device) { copy(host, device); }
void HostBackend::download(const Tensor& device, const Tensor& host) { copy(device, host); }

}  // namespace mixtral
