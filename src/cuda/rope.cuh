#pragma once

namespace mixtral::cuda {

/// Rotates n pairs (a, b) by their angles. The same operations wherever it is compiled.
template <int n>
__device__ inline void rotate_pairs(float (&a)[n], float (&b)[n], const float (&cosine)[n],
                                    const float (&sine)[n]) {
#pragma unroll
  for (int j = 0; j < n; ++j) {
    const float before = a[j];
    a[j] = fmaf(before, cosine[j], -__fmul_rn(b[j], sine[j]));
    b[j] = fmaf(b[j], cosine[j], __fmul_rn(before, sine[j]));
  }
}

}  // namespace mixtral::cuda
