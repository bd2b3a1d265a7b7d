#pragma once

#include <cuda_fp8.h>

#include <bit>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>

#include "base/advice.h"
#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "ops/kv_view.h"

namespace mixtral::cuda {

/// Where tokens of sequences stand in a cache.
struct PageTable {
  const int* pages;  // [sequences, width]
  int width;
  int shift;  // pages have 2^shift tokens

  /// The index of token t among all tokens of the pool.
  __device__ int entry(int sequence, int t) const {
    const int page = __ldg(pages + int64_t{sequence} * width + (t >> shift));
    return (page << shift) + (t & ((1 << shift) - 1));
  }
};

inline PageTable page_table(const ops::KvView& cache) {
  CHECK(cache.pages() * cache.page_tokens() <= std::numeric_limits<int>::max(),
        "a cache of at most 2^31 tokens");
  return {data<int>(cache.table), static_cast<int>(cache.table.dim(1)),
          std::countr_zero(static_cast<unsigned>(cache.page_tokens()))};
}

// Codes of a cache (ops::CacheType).
struct Int8Code {
  uint8_t bits;
};
struct Fp8Code {
  uint8_t bits;
};
template <class K>
constexpr bool kIsCode = std::is_same_v<K, Int8Code> || std::is_same_v<K, Fp8Code>;

template <class A>
__device__ inline A widen(Int8Code x) {
  return static_cast<A>(static_cast<int8_t>(x.bits));
}
template <class A>
__device__ inline A widen(Fp8Code x) {
  return static_cast<A>(__half2float(Half(__nv_cvt_fp8_to_halfraw(x.bits, __NV_E4M3))));
}

/// Calls f with the Type of a cache's elements: f32, bf16, f16, or codes.
template <class F>
void with_cache_type(ops::CacheType type, F&& f) {
  if (type == ops::CacheType::int8) return f(Type<Int8Code>{});
  if (type == ops::CacheType::fp8) return f(Type<Fp8Code>{});
  with_weight(stored_dtype(type), f);
}

/// Places in one layer's keys, or values: rows of `width` elements of a token and head, and of
/// codes, their scales (ops::CodedPages).
struct CacheRows {
  int shift;  // pages have 2^shift tokens
  int heads, width;
  bool coded;

  /// The first element of a head of a token's entry.
  __device__ int64_t row(int entry, int head) const {
    const int64_t rows = int64_t{entry} * heads + head;
    return rows * width + (coded ? (int64_t{entry >> shift} << shift) * heads * 4 : 0);
  }
  /// The first byte of its scale.
  __device__ int64_t scale(int entry, int head) const {
    const int64_t page = entry >> shift, size = int64_t{1} << shift;
    return page * size * heads * (width + 4) + size * heads * width +
           (head * size + (entry & (size - 1))) * 4;
  }
};

constexpr int kMostHeadWidth = 256;

inline void require_head_width(int width) {
  if (width > kMostHeadWidth)
    throw AdvisedError("‹device cuda›: attention heads are at most 256 wide; this model's are " +
                       std::to_string(width));
}

inline CacheRows cache_rows(const ops::KvView& cache, const ops::Heads& heads) {
  return {std::countr_zero(static_cast<unsigned>(cache.page_tokens())), heads.kv, heads.width,
          cache.coded()};
}

/// Whether rows of the cache can be read in packs of 16 bytes, wherever a page begins.
inline bool has_aligned_rows(const ops::KvView& cache, const ops::Heads& heads) {
  const int64_t rest = cache.coded() ? cache.page_tokens() * heads.kv * 4 : 0;
  const int64_t row = heads.width * size_of(cache.keys.dtype());
  const auto aligned = [](const Tensor& tensor) {
    return reinterpret_cast<uintptr_t>(tensor.data()) % 16 == 0;
  };
  return row % 16 == 0 && rest % 16 == 0 && aligned(cache.keys) && aligned(cache.values);
}

/// A float at any address.
__device__ inline float load_float(const uint8_t* from) {
  if (reinterpret_cast<uintptr_t>(from) % 4 == 0) return *reinterpret_cast<const float*>(from);
  return __uint_as_float(from[0] | uint32_t{from[1]} << 8 | uint32_t{from[2]} << 16 |
                         uint32_t{from[3]} << 24);
}
__device__ inline void store_float(uint8_t* to, float value) {
  const uint32_t bits = __float_as_uint(value);
  if (reinterpret_cast<uintptr_t>(to) % 4 == 0) {
    *reinterpret_cast<uint32_t*>(to) = bits;
    return;
  }
  for (int i = 0; i < 4; ++i) to[i] = static_cast<uint8_t>(bits >> (8 * i));
}

}  // namespace mixtral::cuda
