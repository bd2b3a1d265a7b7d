#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>

namespace mixtral::cuda {

/// Page-locked memory through which copies to and from the device go, in slots that are used in
/// turn: a copy to the device returns once its bytes are in a slot, so the caller may reuse its
/// memory while the transfer and the device's work go on.
class Staging {
 public:
  Staging() = default;
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  void upload(const void* host, void* device, int64_t bytes, cudaStream_t stream);
  /// Returns once the bytes have arrived, and so once all work before the copy is done.
  void download(const void* device, void* host, int64_t bytes, cudaStream_t stream);

 private:
  static constexpr int kSlots = 4;
  static constexpr int64_t kSlotBytes = int64_t{8} << 20;

  struct Slot {
    char* data = nullptr;
    int64_t used = 0;
    cudaEvent_t done = nullptr;  // of the last copy that used the slot
  };

  void create();
  void wait(Slot& slot);
  Slot& next();

  std::array<Slot, kSlots> slots_;
  int current_ = 0;
};

}  // namespace mixtral::cuda
