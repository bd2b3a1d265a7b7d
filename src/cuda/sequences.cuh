#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "ops/attention.h"

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

/// A pointer to activations of either type, for the few accesses whose speed does not matter.
struct Activations {
  void* data;
  bool narrow_type;  // bf16, else f32

  __device__ float read(int64_t i) const {
    return narrow_type ? __bfloat162float(static_cast<const Bf16*>(data)[i])
                       : static_cast<const float*>(data)[i];
  }
  __device__ void write(int64_t i, float value) const {
    if (narrow_type)
      static_cast<Bf16*>(data)[i] = __float2bfloat16_rn(value);
    else
      static_cast<float*>(data)[i] = value;
  }
};

// What attention kernels read. Row n sees keys first_seen(n) .. last_seen(n) of slot(n). The rows
// of a tile are taken in runs of one slot, of which those shorter than kLeastRun are left to
// others.

/// Packed rows: the only slot's key t is token t.
template <class T>
struct PackedSource {
  static constexpr int kLeastRun = 1;
  const T* qkv;
  Band band;
  int tokens, columns, width;  // of the packed rows and of a head
  int heads, kv_heads;
  float scale;

  __device__ int group() const { return heads / kv_heads; }
  __device__ int slot(int) const { return 0; }
  __device__ int first_seen(int n) const { return band.first_seen(n); }
  __device__ int last_seen(int n) const { return n; }
  __device__ const T* query(int n, int head) const {
    return qkv + int64_t{n} * columns + head * width;
  }
  __device__ float query(int n, int head, int c) const { return widen<float>(query(n, head)[c]); }
  __device__ const T* key(int n, int kv) const { return query(n, heads + kv); }
  __device__ const T* value(int n, int kv) const { return query(n, heads + kv_heads + kv); }
  __device__ const T* key(int, int t, int kv) const { return key(t, kv); }
  __device__ const T* value(int, int t, int kv) const { return value(t, kv); }
};

template <class T, class Op>
PackedSource<T> packed_source(const Op& op) {
  return {data<T>(op.qkv),
          {data<int>(op.sequence_starts), static_cast<int>(op.sequence_starts.dim(0) - 1),
           // No wider than there are tokens, so that sums of places do not overflow.
           static_cast<int>(std::min(op.window, op.qkv.dim(0)))},
          static_cast<int>(op.qkv.dim(0)),
          static_cast<int>(op.qkv.dim(1)),
          op.heads.width,
          op.heads.query,
          op.heads.kv,
          static_cast<float>(op.scale)};
}

/// Runs of at least this many tokens of one sequence go through tiles.
constexpr int kLeastRunOfTiles = 8;

/// Tokens over a cache: key t is at index t mod capacity.
template <class K>
struct CachedSource {
  static constexpr int kLeastRun = kLeastRunOfTiles;
  Activations qkv;
  const int *positions, *slots;
  const K *keys, *values;
  int tokens, columns, width;
  int heads, kv_heads, capacity, window;
  float scale;

  __device__ float query(int n, int head, int c) const {
    return qkv.read(int64_t{n} * columns + head * width + c);
  }
  /// The same as a row, when activations are bf16.
  __device__ const Bf16* query(int n, int head) const {
    return static_cast<const Bf16*>(qkv.data) + int64_t{n} * columns + head * width;
  }
  __device__ int slot(int n) const { return slots[n]; }
  __device__ int last_seen(int n) const { return positions[n]; }
  __device__ int first_seen(int n) const {
    return window > 0 ? max(0, positions[n] - window + 1) : 0;
  }
  __device__ int64_t place(int slot, int t, int kv) const {
    return ((int64_t{slot} * capacity + t % capacity) * kv_heads + kv) * width;
  }
  __device__ const K* key(int slot, int t, int kv) const { return keys + place(slot, t, kv); }
  __device__ const K* value(int slot, int t, int kv) const { return values + place(slot, t, kv); }

  /// Whether token n is in a run that goes through tiles of `rows` tokens.
  __device__ bool in_long_run(int n, int rows) const {
    const int begin = n / rows * rows, end = min(begin + rows, tokens);
    int length = 1;
    for (int m = n - 1; m >= begin && slots[m] == slots[n] && length < kLeastRun; --m) ++length;
    for (int m = n + 1; m < end && slots[m] == slots[n] && length < kLeastRun; ++m) ++length;
    return length >= kLeastRun;
  }
};

template <class K>
CachedSource<K> cached_source(const ops::CachedAttention& op) {
  return {{op.qkv.data(), op.qkv.dtype() == Dtype::bf16},
          data<int>(op.positions),
          data<int>(op.slots),
          data<K>(op.keys),
          data<K>(op.values),
          static_cast<int>(op.qkv.dim(0)),
          static_cast<int>(op.qkv.dim(1)),
          op.heads.width,
          op.heads.query,
          op.heads.kv,
          static_cast<int>(op.keys.dim(1)),
          static_cast<int>(std::min<int64_t>(op.window, std::numeric_limits<int>::max())),
          static_cast<float>(op.scale)};
}

}  // namespace mixtral::cuda
