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

constexpr int kCombineParts = 4;  // of a warp, whose loads are under way at once

/// A block a head of a token. The warps take splits in turn, with packs of n columns a lane. The
/// kernel is small, because its instructions come from memory, too: weights have gone through all
/// caches since it last ran.
template <int n, int warps, class K>
__global__ void __launch_bounds__(warps* kWarp) combine_splits(CachedSource<K> op, Splits to) {
  constexpr int kThreads = warps * kWarp, kTotals = kMostSplits / kWarp, kParts = kCombineParts;
  __shared__ float shares[kMostSplits];
  __shared__ float parts[warps][kMostHeadWidth];
  allow_next();
  wait_for_previous();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
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
  Pack<float, n> part[kParts];
  const auto load_parts = [&](int from, int column) {
#pragma unroll
    for (int u = 0; u < kParts; ++u) {
      const int s = from + u * warps;
      if (s < to.splits && column < op.width)
        part[u] = *reinterpret_cast<const Pack<float, n>*>(sums + s * op.width + column);
    }
  };
  load_parts(warp, lane * n);
  if (last < 0) {  // padding
    for (int c = thread; c < op.width; c += kThreads) to.out.write(row * op.width + c, 0);
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
    if (warp == 0) shares[i * kWarp + lane] = share;
  }
  total = warp_sum(total);
  __syncthreads();
  for (int column = lane * n; column < op.width; column += kWarp * n) {
    float sum[n] = {};
    for (int from = warp; from < used; from += kParts * warps) {
      if (from > warp || column > lane * n) load_parts(from, column);
#pragma unroll
      for (int u = 0; u < kParts; ++u) {
        const int s = from + u * warps;
        if (s >= used) continue;
#pragma unroll
        for (int j = 0; j < n; ++j) sum[j] = fmaf(part[u].at[j], shares[s], sum[j]);
      }
    }
#pragma unroll
    for (int j = 0; j < n; ++j) parts[warp][column + j] = sum[j];
  }
  __syncthreads();
  for (int c = thread; c < op.width; c += kThreads) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < warps; ++w) sum += parts[w][c];
    to.out.write(row * op.width + c, sum / total);
  }
}

template <class K>
void launch_combine(const CachedSource<K>& source, const Splits& to, cudaStream_t stream) {
  const int64_t rows = int64_t{source.tokens} * source.heads;
  const auto launch = [&](auto n, auto warps) {
    chain(combine_splits<n(), warps(), K>, dim3(blocks(rows)), warps() * kWarp, 0, stream, source,
          to);
  };
  const auto with_warps = [&](auto n) {
    const std::integral_constant<int, 4> few;
    const std::integral_constant<int, 16> many;
    if (to.splits <= few() * kCombineParts)
      launch(n, few);
    else
      launch(n, many);
  };
  if (source.width % 4 == 0)
    with_warps(std::integral_constant<int, 4>{});
  else
    with_warps(std::integral_constant<int, 1>{});
}

}  // namespace mixtral::cuda
