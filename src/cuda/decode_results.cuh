#pragma once

#include <cute/arch/cluster_sm90.hpp>

#include "cuda/flash.cuh"
#include "cuda/split_kv.cuh"

/// How the results of attention in decoding (attention_decode.cu) are combined: of a block's warps,
/// and of a cluster's blocks.
namespace mixtral::cuda {

constexpr int kDecodeHeads = 8;  // query heads of a block, at most
constexpr int kCluster = 8;      // blocks, at most

/// What a warp found: of each head the largest score (of codes, of a score and the logarithm of its
/// value's scale), in units of log 2, the total of the weights, and the sums.
template <int width>
struct Found {
  float largest[kDecodeHeads], total[kDecodeHeads];
  float sums[kDecodeHeads][width + 4];
};

/// What the blocks of a cluster found, of this block's share of the results.
template <int width>
struct Shares {
  float sums[kDecodeHeads * width + kCluster];  // [blocks, share]
  float2 totals[kCluster][kDecodeHeads];        // the largest score, and the total
};

/// The address of `place` in the shared memory of a block of the cluster.
__device__ inline uint32_t place_in_block(const void* place, int rank) {
  return cute::set_block_rank(static_cast<uint32_t>(__cvta_generic_to_shared(place)),
                              static_cast<uint32_t>(rank));
}
__device__ inline void store_in_cluster(uint32_t place, float value) {
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(place), "f"(value) : "memory");
}
__device__ inline void store_in_cluster(uint32_t place, float2 values) {
  asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(place), "f"(values.x),
               "f"(values.y)
               : "memory");
}

/// What the warps of a block found, one after another in shared memory.
template <int width, int warps>
struct WarpsFound {
  static constexpr int kThreads = warps * kWarp;
  const char* memory;
  int stride;

  __device__ const Found<width>& of(int warp) const {
    return *reinterpret_cast<const Found<width>*>(memory + warp * stride);
  }
  /// Returns a head's largest score in the block. Calls use(warp, factor) for each warp; the factor
  /// makes the warp's sums and total relative to that score.
  template <class F>
  __device__ float merge(int head, F&& use) const {
    float most = -INFINITY;
#pragma unroll
    for (int w = 0; w < warps; ++w) most = fmaxf(most, of(w).largest[head]);
    const float base = most == -INFINITY ? 0.0f : most;
#pragma unroll
    for (int w = 0; w < warps; ++w) use(w, exp2_fast(of(w).largest[head] - base));
    return most;
  }
};

/// Writes the results of a block that has all keys of its heads, or what it found of its split.
template <int width, int warps>
__device__ void leave_results(const WarpsFound<width, warps>& found, const Splits& to, int count,
                              int head_width, int64_t first_row) {
  for (int i = static_cast<int>(threadIdx.x); i < count * width; i += found.kThreads) {
    const int head = i / width, column = i % width;
    if (column >= head_width) continue;
    float sum = 0, all = 0;
    const float most = found.merge(head, [&](int w, float weight) {
      sum += found.of(w).sums[head][column] * weight;
      all += found.of(w).total[head] * weight;
    });
    const int64_t row = first_row + head;
    if (!to.sums) {
      to.out.write(row * head_width + column, sum / all);
      continue;
    }
    const int64_t part = row * to.splits + blockIdx.z;
    to.sums[part * head_width + column] = sum;
    if (column == 0) to.totals[part] = make_float2(most, all);
  }
}

/// Combines the splits of a cluster's blocks. Each block sends its sums and totals to the blocks
/// that own the results, then writes the results that it owns. `used` splits have keys.
template <int width, int warps>
__device__ void combine_in_cluster(const WarpsFound<width, warps>& found, const Splits& to,
                                   int used, int count, int head_width, int64_t first_row) {
  __shared__ Shares<width> shares;
  const int thread = static_cast<int>(threadIdx.x), rank = static_cast<int>(blockIdx.z);
  const int results = count * head_width, share = (results + to.splits - 1) / to.splits;
  cute::cluster_wait();  // all of its blocks have begun
  if (rank < used) {
    for (int i = thread; i < results; i += found.kThreads) {
      const int head = i / head_width, column = i % head_width;
      float sum = 0;
      found.merge(head,
                  [&](int w, float weight) { sum += found.of(w).sums[head][column] * weight; });
      store_in_cluster(place_in_block(shares.sums + rank * share + i % share, i / share), sum);
    }
    for (int i = thread; i < count * to.splits; i += found.kThreads) {
      const int head = i % count;
      float total = 0;
      const float most = found.merge(
          head, [&](int w, float weight) { total += found.of(w).total[head] * weight; });
      store_in_cluster(place_in_block(&shares.totals[rank][head], i / count),
                       make_float2(most, total));
    }
  }
  cute::cluster_arrive();
  cute::cluster_wait();
  for (int i = thread; i < share; i += found.kThreads) {
    const int result = rank * share + i, head = result / head_width;
    if (result >= results) return;
    float most = -INFINITY;
    for (int s = 0; s < used; ++s) most = fmaxf(most, shares.totals[s][head].x);
    const float base = most == -INFINITY ? 0.0f : most;
    float sum = 0, total = 0;
    for (int s = 0; s < used; ++s) {
      const float weight = exp2_fast(shares.totals[s][head].x - base);
      sum = fmaf(shares.sums[s * share + i], weight, sum);
      total = fmaf(shares.totals[s][head].y, weight, total);
    }
    to.out.write(first_row * head_width + result, sum / total);
  }
}

}  // namespace mixtral::cuda
