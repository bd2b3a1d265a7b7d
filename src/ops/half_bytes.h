#pragma once

#include <cstring>

#include "tensor/dtype.h"

namespace mixtral::ops {

// A half within a block of bytes, wherever it stands.

inline float read_half(const uint8_t* bytes) {
  f16 half;
  std::memcpy(&half, bytes, sizeof half);
  return static_cast<float>(half);
}

inline void write_half(uint8_t* bytes, float value) {
  const f16 half(value);
  std::memcpy(bytes, &half, sizeof half);
}

}  // namespace mixtral::ops
