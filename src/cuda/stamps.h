#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

namespace mixtral::cuda {

/// Moments in the order of a stream's work, for profiles: an event each, kept for the next profile.
class Stamps {
 public:
  Stamps() = default;
  ~Stamps();
  Stamps(const Stamps&) = delete;
  Stamps& operator=(const Stamps&) = delete;

  /// `recording`: the stream's work is being recorded, and each replay is to set the event.
  int64_t set(cudaStream_t stream, bool recording);
  double seconds(int64_t from, int64_t to) const;
  void forget() { used_ = 0; }

 private:
  cudaEvent_t at(int64_t number) const;

  std::vector<cudaEvent_t> events_;
  size_t used_ = 0;
};

}  // namespace mixtral::cuda
