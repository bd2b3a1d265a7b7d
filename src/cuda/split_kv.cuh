#pragma once

#include <algorithm>

#include "cuda/chain.cuh"
#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "cuda/scratch.h"
#include "cuda/sequences.cuh"

/// Split-KV (Dao et al. 2023, "Flash-Decoding"): several blocks share the keys of one token, and a
/// second launch combines what they found.
namespace mixtral::cuda {

constexpr int kLeastSplitKeys = 64;
constexpr int kMostSplits = 128;

/// How the keys of a token are divided among blocks, and where their results go.
struct Splits {
  Activations out;
  float* sums;     // [N, H, splits, h]; null when splits is 1
  float2* totals;  // [N, H, splits]: largest score, in units of log 2, and total of the weights
  int splits;      // at most; a token with few keys has fewer

  /// Keys of a split: whole tiles of 16.
  __device__ int keys(int seen) const {
    return max(kLeastSplitKeys, ((seen + splits - 1) / splits + 15) / 16 * 16);
  }
  __device__ int used(int seen) const { return (seen + keys(seen) - 1) / keys(seen); }
};

/// Splits for a device that takes `resident` blocks at a time; a token's heads are `grid_heads`
/// blocks.
inline Splits split_keys(const ops::CachedAttention& op, int64_t grid_heads, int64_t resident,
                         Scratch& scratch) {
  const int64_t tokens = op.qkv.dim(0), context = op.cache.context();
  const int64_t seen = op.window > 0 ? std::min(op.window, context) : context;
  // As many blocks as are resident, as long as a token may have keys for them.
  const int64_t splits =
      std::clamp<int64_t>(resident / (tokens * grid_heads), 1,
                          std::min<int64_t>(divide_up(seen, kLeastSplitKeys), kMostSplits));
  Splits to{
      {op.out.data(), op.out.dtype() == Dtype::bf16}, nullptr, nullptr, static_cast<int>(splits)};
  if (splits == 1) return to;
  const int64_t parts = tokens * op.heads.query * splits;
  to.sums = scratch.take<float>(parts * (op.heads.width + 2));
  to.totals = reinterpret_cast<float2*>(to.sums + parts * op.heads.width);
  return to;
}

constexpr int kCombineThreads = 128;

/// A block a head of a token. Each warp takes every fourth split, with packs of n columns a lane;
/// all of its loads are under way at once.
template <int n, class K>
__global__ void __launch_bounds__(kCombineThreads) combine_splits(CachedSource<K> op, Splits to) {
  constexpr int kWarps = kCombineThreads / kWarp, kTotals = kMostSplits / kWarp, kParts = 12;
  __shared__ float shares[kWarps][kMostSplits];
  __shared__ float parts[kWarps][kMostHeadWidth];
  allow_next();
  wait_for_previous();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t row = blockIdx.x;
  const int token = static_cast<int>(row / op.heads);
  const int last = op.last_seen(token);
  const float* sums = to.sums + row * to.splits * op.width;

  // Splits that no block took hold anything: they are left out once `used` is known.
  float2 totals[kTotals];
#pragma unroll
  for (int i = 0; i < kTotals; ++i) {
    const int s = i * kWarp + lane;
    totals[i] = s < to.splits ? to.totals[row * to.splits + s] : make_float2(0, 0);
  }
  Pack<float, n> first[kParts];
#pragma unroll
  for (int u = 0; u < kParts; ++u) {
    const int s = warp + u * kWarps;
    first[u] = {};
    if (s < to.splits && lane * n < op.width)
      first[u] = *reinterpret_cast<const Pack<float, n>*>(sums + s * op.width + lane * n);
  }
  if (last < 0) {  // padding
    for (int c = static_cast<int>(threadIdx.x); c < op.width; c += kCombineThreads)
      to.out.write(row * op.width + c, 0);
    return;
  }
  const int used = to.used(last + 1 - op.first_seen(token));
  float most = -INFINITY;
#pragma unroll
  for (int i = 0; i < kTotals; ++i)
    if (i * kWarp + lane < used) most = fmaxf(most, totals[i].x);
  most = warp_reduce(most, Max{});
  const float base = most == -INFINITY ? 0.0f : most;
  float total = 0;
#pragma unroll
  for (int i = 0; i < kTotals; ++i) {
    const bool inside = i * kWarp + lane < used;
    const float share = inside ? exp2_fast(totals[i].x - base) : 0.0f;
    if (inside) total += totals[i].y * share;
    shares[warp][i * kWarp + lane] = share;
  }
  total = warp_sum(total);
  __syncwarp();
  for (int column = lane * n; column < op.width; column += kWarp * n) {
    float sum[n] = {};
    for (int from = warp; from < used; from += kParts * kWarps) {
      Pack<float, n> part[kParts];
#pragma unroll
      for (int u = 0; u < kParts; ++u) {
        const int s = from + u * kWarps;
        if (from == warp && column == lane * n)
          part[u] = first[u];
        else if (s < used)
          part[u] = *reinterpret_cast<const Pack<float, n>*>(sums + s * op.width + column);
      }
#pragma unroll
      for (int u = 0; u < kParts; ++u) {
        const int s = from + u * kWarps;
        if (s >= used) continue;
#pragma unroll
        for (int j = 0; j < n; ++j) sum[j] = fmaf(part[u].at[j], shares[warp][s], sum[j]);
      }
    }
#pragma unroll
    for (int j = 0; j < n; ++j) parts[warp][column + j] = sum[j];
  }
  __syncthreads();
  for (int c = static_cast<int>(threadIdx.x); c < op.width; c += kCombineThreads) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += parts[w][c];
    to.out.write(row * op.width + c, sum / total);
  }
}

template <class K>
void launch_combine(const CachedSource<K>& source, const Splits& to, cudaStream_t stream) {
  const int64_t rows = int64_t{source.tokens} * source.heads;
  const auto launch = [&](auto n) {
    chain(combine_splits<n(), K>, dim3(blocks(rows)), kCombineThreads, 0, stream, source, to);
  };
  if (source.width % 4 == 0)
    launch(std::integral_constant<int, 4>{});
  else
    launch(std::integral_constant<int, 1>{});
}

}  // namespace mixtral::cuda
