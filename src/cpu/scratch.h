#pragma once

#include <algorithm>
#include <vector>

#include "tensor/buffer.h"

namespace mixtral::cpu {

/// Working memory of each thread, kept from call to call, so that an op allocates nothing once the
/// largest has been run. A thread asks only for its own.
class Scratch {
 public:
  explicit Scratch(int threads) : buffers_(static_cast<size_t>(threads)) {}

  /// At least `bytes` bytes of thread `thread`, aligned to 256; contents undefined, valid until the
  /// thread asks again.
  void* get(int thread, int64_t bytes) {
    Buffer& buffer = buffers_[static_cast<size_t>(thread)];
    if (buffer.bytes() < bytes) {
      buffer = {};
      buffer = Buffer(host_memory(), std::max(bytes + bytes / 2, kLeastBytes));
    }
    return buffer.data();
  }

 private:
  // Room for a large page, so that packed blocks cost few TLB misses. Untouched memory is free.
  static constexpr int64_t kLeastBytes = int64_t{4} << 20;

  std::vector<Buffer> buffers_;
};

}  // namespace mixtral::cpu
