#pragma once

#include <cstdint>
#include <vector>

namespace mixtral::cuda {

/// Device memory that ops hand from one of their launches to the next. What an op takes is valid
/// until the next op begins; work is ordered on one stream, so the same bytes can then serve again.
/// It grows by adding a larger block and never gives one back: kernels in flight and recorded
/// graphs may still use the old ones. After the first run of a computation it no longer grows.
class Scratch {
 public:
  Scratch() = default;
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  /// Starts an op: everything taken before is free again.
  void begin() { offset_ = 0; }

  /// `count` elements, aligned to 256 bytes. Throws Error when the device has no room.
  template <class T>
  T* take(int64_t count) {
    return static_cast<T*>(take_bytes(count * static_cast<int64_t>(sizeof(T))));
  }

  int64_t bytes() const;  // held in all blocks

 private:
  struct Block {
    void* data;
    int64_t bytes;
  };
  void* take_bytes(int64_t bytes);

  std::vector<Block> blocks_;
  int64_t offset_ = 0;  // in the last block
};

}  // namespace mixtral::cuda
