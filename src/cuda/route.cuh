#pragma once

#include "cuda/device.cuh"

namespace mixtral::cuda {

/// An order-preserving map to integers in which -0 equals +0 and NaN comes last.
__device__ inline unsigned sortable(float x) {
  if (isnan(x)) return 0;
  const unsigned bits = __float_as_uint(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

}  // namespace mixtral::cuda
