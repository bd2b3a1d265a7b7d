#pragma once

#include <cstdint>
#include <vector>

namespace mixtral::cuda {

/// Device memory that ops hand from one of their launches to the next. What an op takes is valid
/// until the next op begins; work is ordered on one stream, so the same bytes can then serve again.
/// It grows by adding a block that would have held all that the op took so far; the blocks before
/// it are given back when the next op begins, unless a recorded graph uses them. After the first
/// run of a computation it no longer grows.
class Scratch {
 public:
  Scratch() = default;
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  /// Starts an op: everything taken before is free again.
  void begin();
  /// Between these two, work is recorded: nothing is given back, and what was used never will be.
  void begin_recording() { recording_ = true; }
  void end_recording() {
    recording_ = false;
    recorded_ = blocks_.size();
  }

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
  int64_t offset_ = 0;   // in the last block
  int64_t taken_ = 0;    // by the op so far, in all blocks
  size_t recorded_ = 0;  // the first so many blocks may be in recorded graphs
  bool recording_ = false;
};

}  // namespace mixtral::cuda
