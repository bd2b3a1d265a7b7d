#pragma once

#include "tensor/buffer.h"

namespace mixtral {

/// Cuts tensors from one block, each aligned to 256 bytes. Cutting from no block gives the size
/// that the same cuts need.
class Cutter {
 public:
  explicit Cutter(void* base = nullptr) : base_(static_cast<char*>(base)) {}

  Tensor take(Shape shape, Dtype dtype) {
    const int64_t begin = offset_;
    offset_ += (shape.numel() * size_of(dtype) + 255) / 256 * 256;
    return {base_ ? base_ + begin : nullptr, shape, dtype};
  }
  int64_t size() const { return offset_; }

 private:
  char* base_;
  int64_t offset_ = 0;
};

}  // namespace mixtral
