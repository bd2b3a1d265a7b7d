#pragma once

#include <cuda_runtime_api.h>

#include <functional>

#include "ops/backend.h"

namespace mixtral::cuda {

/// A point in a stream's work. `prepare` issues what still waits to be issued.
class StreamFence final : public Fence {
 public:
  StreamFence(cudaStream_t stream, std::function<void()> prepare);
  ~StreamFence() override;
  StreamFence(const StreamFence&) = delete;
  StreamFence& operator=(const StreamFence&) = delete;

  void set() noexcept override;
  cudaEvent_t event() const { return event_; }

 private:
  cudaStream_t stream_;
  std::function<void()> prepare_;
  cudaEvent_t event_ = nullptr;
};

/// Copies on its own stream. With several lanes, one lane copies while the thread of another wakes
/// up.
class StreamLane final : public CopyLane {
 public:
  explicit StreamLane(int device);
  ~StreamLane() override;
  StreamLane(const StreamLane&) = delete;
  StreamLane& operator=(const StreamLane&) = delete;

  void to_device(const void* host, void* device, int64_t bytes, const Fence& after) override;
  void to_host(const void* device, void* host, int64_t bytes, const Fence& after) override;

 private:
  void copy(const void* from, void* to, int64_t bytes, cudaMemcpyKind kind, const Fence& after);

  int device_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t done_ = nullptr;
};

/// Pages that the driver keeps in memory and that every GPU may read.
class RegisteredPages final : public LockedPages {
 public:
  RegisteredPages(void* data, int64_t bytes);
  ~RegisteredPages() override;
  RegisteredPages(const RegisteredPages&) = delete;
  RegisteredPages& operator=(const RegisteredPages&) = delete;

 private:
  void* data_;
};

}  // namespace mixtral::cuda
