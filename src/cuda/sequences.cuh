#pragma once

#include "cuda/device.cuh"

/// Packed sequences as bands: with tokens end to end, token n sees exactly the tokens first_seen(n)
/// .. n, and token t is seen by exactly t .. last_seeing(t). Both rise with their argument.
namespace mixtral::cuda {

struct Band {
  const int* starts;  // [S+1]
  int sequences;      // S
  int window;         // 0: no limit

  /// The sequence that token n belongs to (of sequences without tokens, none).
  __device__ int sequence_of(int n) const {
    int low = 0, high = sequences;  // starts[low] <= n < starts[high]
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (starts[middle] <= n)
        low = middle;
      else
        high = middle;
    }
    return low;
  }
  __device__ int first_seen(int n) const {
    const int start = starts[sequence_of(n)];
    return window > 0 ? max(start, n - window + 1) : start;
  }
  __device__ int last_seeing(int t) const {
    const int last = starts[sequence_of(t) + 1] - 1;
    return window > 0 ? min(last, t + window - 1) : last;
  }
};

}  // namespace mixtral::cuda
