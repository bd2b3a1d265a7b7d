#pragma once

#include "ops/backend.h"

namespace mixtral {

/// What backends that compute in ordinary memory share: allocation, copies, memory figures.
class HostBackend : public Backend {
 public:
  void* allocate(int64_t bytes) override { return host_memory().allocate(bytes); }
  void free(void* data, int64_t bytes) noexcept override { host_memory().free(data, bytes); }
  MemoryInfo memory() const override;  // of the machine, or of this process's control group
  void upload(const Tensor& host, const Tensor& device) override;
  void download(const Tensor& device, const Tensor& host) override;
  void synchronize() override {}
};

}  // namespace mixtral
