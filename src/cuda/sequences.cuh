#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "cuda/kv_view.cuh"
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

// What attention kernels read. Row n sees keys first_seen(n) .. last_seen(n) of sequence(n), none
// if the last comes before the first. Key t of a sequence stands at place(sequence, t): as a row of
// numbers it is key_row(kv head, place), and its elements begin at keys(kv head) + offset(place);
// values likewise. The rows of a tile are taken in runs of one sequence, whose keys are read from
// first_key(the first that one of them sees) in blocks of `size`.

/// Packed rows: key t of the only sequence is token t.
template <class T>
struct PackedSource {
  const T* qkv;
  Band band;
  int tokens, columns, width;  // of the packed rows and of a head
  int heads, kv_heads;
  float scale;

  __device__ int group() const { return heads / kv_heads; }
  __device__ int sequence(int) const { return 0; }
  __device__ int first_seen(int n) const { return band.first_seen(n); }
  __device__ int last_seen(int n) const { return n; }
  __device__ int first_key(int seen, int) const { return seen; }
  __device__ const T* query(int n, int head) const {
    return qkv + int64_t{n} * columns + head * width;
  }
  __device__ float query(int n, int head, int c) const { return widen<float>(query(n, head)[c]); }
  __device__ const T* key(int n, int kv) const { return query(n, heads + kv); }
  __device__ const T* value(int n, int kv) const { return query(n, heads + kv_heads + kv); }
  __device__ const T* keys(int kv) const { return key(0, kv); }
  __device__ const T* values(int kv) const { return value(0, kv); }
  __device__ int place(int, int t) const { return t; }
  __device__ int64_t offset(int t) const { return int64_t{t} * columns; }
  __device__ const T* key_row(int kv, int t) const { return keys(kv) + offset(t); }
  __device__ const T* value_row(int kv, int t) const { return values(kv) + offset(t); }
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

/// A row of codes with their scale.
template <class K>
struct CodedRow {
  const K* codes;
  float scale;

  __device__ float operator[](int c) const { return widen<float>(codes[c]) * scale; }
};

/// Tokens over a cache in pages. Padding rows see no key.
template <class K>
struct CachedSource {
  Activations qkv;
  const int *positions, *rows;
  PageTable table;
  CacheRows places;
  const K *all_keys, *all_values;
  int tokens, columns, width;
  int heads, kv_heads, window;
  float scale;

  __device__ float query(int n, int head, int c) const {
    return qkv.read(int64_t{n} * columns + head * width + c);
  }
  /// The same as a row, when activations are bf16.
  __device__ const Bf16* query(int n, int head) const {
    return static_cast<const Bf16*>(qkv.data) + int64_t{n} * columns + head * width;
  }
  __device__ int sequence(int n) const { return rows[n]; }
  __device__ int last_seen(int n) const { return positions[n]; }
  __device__ int first_seen(int n) const {
    // Of a padding row: behind every key, so that it does not widen what its run reads.
    if (positions[n] == ops::kPadding) return std::numeric_limits<int>::max();
    return window > 0 ? max(0, positions[n] - window + 1) : 0;
  }
  /// The same blocks for every run, so that a row's sums do not depend on the rows beside it. Keys
  /// in front of those that are seen may be gone: key `seen` is read in their place.
  __device__ int first_key(int seen, int size) const { return seen / size * size; }
  __device__ const K* keys(int kv) const { return all_keys + kv * width; }
  __device__ const K* values(int kv) const { return all_values + kv * width; }
  __device__ int place(int sequence, int t) const { return table.entry(sequence, t); }
  __device__ int64_t offset(int entry) const { return places.row(entry, 0); }
  /// Of codes: the scales of a head of a token's entry.
  __device__ const uint8_t* key_scale(int entry, int kv) const {
    return reinterpret_cast<const uint8_t*>(all_keys) + places.scale(entry, kv);
  }
  __device__ const uint8_t* value_scale(int entry, int kv) const {
    return reinterpret_cast<const uint8_t*>(all_values) + places.scale(entry, kv);
  }
  __device__ auto key_row(int kv, int entry) const {
    if constexpr (kIsCode<K>)
      return CodedRow<K>{keys(kv) + offset(entry), load_float(key_scale(entry, kv))};
    else
      return keys(kv) + offset(entry);
  }
  __device__ auto value_row(int kv, int entry) const {
    if constexpr (kIsCode<K>)
      return CodedRow<K>{values(kv) + offset(entry), load_float(value_scale(entry, kv))};
    else
      return values(kv) + offset(entry);
  }
};

template <class K>
CachedSource<K> cached_source(const ops::CachedAttention& op) {
  return {{op.qkv.data(), op.qkv.dtype() == Dtype::bf16},
          data<int>(op.positions),
          data<int>(op.rows),
          page_table(op.cache),
          cache_rows(op.cache, op.heads),
          data<K>(op.cache.keys),
          data<K>(op.cache.values),
          static_cast<int>(op.qkv.dim(0)),
          static_cast<int>(op.qkv.dim(1)),
          op.heads.width,
          op.heads.query,
          op.heads.kv,
          static_cast<int>(std::min<int64_t>(op.window, std::numeric_limits<int>::max())),
          static_cast<float>(op.scale)};
}

}  // namespace mixtral::cuda
