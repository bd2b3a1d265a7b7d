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

/// Small copies beside the work of the main stream, on a stream of their own. To the device they go
/// by way of a landing place there: the bytes cross while kernels run, and the main stream only
/// copies them from the landing place to where they belong, in the order of its work.
class SideCopies {
 public:
  static constexpr int64_t kMostBytes = int64_t{16} << 20;  // of an upload

  SideCopies();
  ~SideCopies();
  SideCopies(const SideCopies&) = delete;
  SideCopies& operator=(const SideCopies&) = delete;

  /// Returns once the bytes are in page-locked memory. `stream` is the main one.
  void upload(const void* host, void* device, int64_t bytes, cudaStream_t stream);
  /// Marks the point that the main stream's work has come to.
  void mark(cudaStream_t stream);
  bool marked() const { return marked_; }
  /// Waits for the work before the mark, and for that alone.
  void download(const void* device, void* host, int64_t bytes);

 private:
  static constexpr int kSlots = 3;  // uploads that may be under way, so that the host seldom waits
  static constexpr int64_t kArrivingBytes = int64_t{64} << 10;

  struct Slot {
    char* data = nullptr;     // page-locked
    char* landing = nullptr;  // on the device
    int64_t bytes = 0;
    cudaEvent_t arrived = nullptr;  // at the landing place
    cudaEvent_t placed = nullptr;   // where they belong: the slot is free again
  };

  void grow(Slot& slot, int64_t bytes);

  cudaStream_t copies_ = nullptr;
  std::array<Slot, kSlots> slots_;
  int next_ = 0;
  cudaEvent_t mark_ = nullptr;
  bool marked_ = false;
  char* arriving_ = nullptr;  // page-locked
};

}  // namespace mixtral::cuda
