#include "cuda/stamps.h"

#include "base/error.h"
#include "cuda/status.h"

namespace mixtral::cuda {

Stamps::~Stamps() {
  for (cudaEvent_t event : events_) cudaEventDestroy(event);
}

int64_t Stamps::set(cudaStream_t stream, bool recording) {
  if (used_ == events_.size()) {
    cudaEvent_t event = nullptr;
    check_cuda(cudaEventCreate(&event), "an event");
    events_.push_back(event);
  }
  const unsigned flags = recording ? cudaEventRecordExternal : cudaEventRecordDefault;
  check_cuda(cudaEventRecordWithFlags(events_[used_], stream, flags), "an event");
  return static_cast<int64_t>(used_++);
}

cudaEvent_t Stamps::at(int64_t number) const {
  CHECK(number >= 0 && static_cast<size_t>(number) < used_, "no such moment was noted");
  return events_[static_cast<size_t>(number)];
}

double Stamps::seconds(int64_t from, int64_t to) const {
  check_cuda(cudaEventSynchronize(at(to)), "the GPU's work");
  check_cuda(cudaEventSynchronize(at(from)), "the GPU's work");
  float milliseconds = 0;
  check_cuda(cudaEventElapsedTime(&milliseconds, at(from), at(to)), "an event");
  return static_cast<double>(milliseconds) * 1e-3;
}

}  // namespace mixtral::cuda
