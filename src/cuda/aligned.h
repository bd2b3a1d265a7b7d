#pragma once

#include <cstdint>

#include "tensor/tensor.h"

namespace mixtral::cuda {

/// Whether a tensor begins at a multiple of `bytes`; an empty one does.
inline bool aligned(const Tensor& tensor, uintptr_t bytes = 16) {
  return reinterpret_cast<uintptr_t>(tensor.data()) % bytes == 0;
}

}  // namespace mixtral::cuda
