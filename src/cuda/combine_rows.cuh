#pragma once

#include <cstdint>

#include "cuda/device.cuh"

namespace mixtral::cuda {

/// sum = Σ_j y[slot[j]] + residual, n columns of a token: its k terms in order of j, the residual
/// last (or null).
template <int n, class T>
__device__ inline void combine_rows(const T* y, const int* slot, int k, int width, int column,
                                    const T* residual, float (&sum)[n]) {
  // Places first, then all that stands there: few rows wait for memory, not for bandwidth.
  constexpr int kTerms = 2;
  float last[n] = {};
#pragma unroll
  for (int i = 0; i < n; ++i) sum[i] = 0;
  if (residual) load(residual + column, last);
  for (int first = 0; first < k; first += kTerms) {
    int place[kTerms];
    float term[kTerms][n] = {};
#pragma unroll
    for (int j = 0; j < kTerms; ++j) place[j] = first + j < k ? slot[first + j] : -1;
#pragma unroll
    for (int j = 0; j < kTerms; ++j)
      if (place[j] >= 0) load(y + int64_t{place[j]} * width + column, term[j]);
#pragma unroll
    for (int j = 0; j < kTerms; ++j)
#pragma unroll
      for (int i = 0; i < n; ++i) sum[i] += term[j][i];
  }
#pragma unroll
  for (int i = 0; i < n; ++i) sum[i] += last[i];
}

}  // namespace mixtral::cuda
