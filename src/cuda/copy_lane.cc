#include "cuda/copy_lane.h"

#include <fmt/format.h>

#include <utility>

#include "base/error.h"
#include "cuda/status.h"

namespace mixtral::cuda {

StreamFence::StreamFence(cudaStream_t stream, std::function<void()> prepare)
    : stream_(stream), prepare_(std::move(prepare)) {
  check_cuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "an event");
}

StreamFence::~StreamFence() { cudaEventDestroy(event_); }

void StreamFence::set() noexcept {
  try {
    prepare_();
  } catch (...) {  // an error of a launch, which the backend's next call meets, too
  }
  cudaEventRecord(event_, stream_);
}

StreamLane::StreamLane(int device) : device_(device) {
  check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream");
  check_cuda(cudaEventCreateWithFlags(&done_, cudaEventDisableTiming | cudaEventBlockingSync),
             "an event");
}

StreamLane::~StreamLane() {
  cudaStreamSynchronize(stream_);
  cudaEventDestroy(done_);
  cudaStreamDestroy(stream_);
}

void StreamLane::copy(const void* from, void* to, int64_t bytes, cudaMemcpyKind kind,
                      const Fence& after) {
  const char* const what =
      kind == cudaMemcpyHostToDevice ? "a copy to the device" : "a copy from the device";
  check_cuda(cudaSetDevice(device_), "the GPU");
  check_cuda(cudaStreamWaitEvent(stream_, static_cast<const StreamFence&>(after).event(), 0), what);
  check_cuda(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), kind, stream_), what);
  check_cuda(cudaEventRecord(done_, stream_), what);
  check_cuda(cudaEventSynchronize(done_), what);
}

void StreamLane::to_device(const void* host, void* device, int64_t bytes, const Fence& after) {
  copy(host, device, bytes, cudaMemcpyHostToDevice, after);
}

void StreamLane::to_host(const void* device, void* host, int64_t bytes, const Fence& after) {
  copy(device, host, bytes, cudaMemcpyDeviceToHost, after);
}

RegisteredPages::RegisteredPages(void* data, int64_t bytes) : data_(data) {
  const cudaError_t status =
      cudaHostRegister(data, static_cast<size_t>(bytes), cudaHostRegisterPortable);
  if (status == cudaSuccess) return;
  cudaGetLastError();
  throw Error(
      fmt::format("{:.2f} GiB of this machine's memory could not be locked for copies to the GPU: "
                  "{}; end other programs that use memory, or raise the limit of locked memory "
                  "(ulimit -l, or the container's)",
                  static_cast<double>(bytes) / 0x1p30, cudaGetErrorString(status)));
}

RegisteredPages::~RegisteredPages() { cudaHostUnregister(data_); }

}  // namespace mixtral::cuda
