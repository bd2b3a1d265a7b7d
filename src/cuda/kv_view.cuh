#pragma once

#include <bit>
#include <cstdint>
#include <limits>

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

}  // namespace mixtral::cuda
