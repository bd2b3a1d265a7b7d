#include "cuda/attention_decode.h"
#include "cuda/attention_mma.h"
#include "cuda/attention_wgmma.h"
#include "cuda/backend.h"
#include "cuda/chain.cuh"
#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "cuda/flash_forward.cuh"
#include "cuda/scratch.h"
#include "cuda/sequences.cuh"
#include "cuda/split_kv.cuh"
#include "cuda/status.h"
#include "cuda_plan/attention_part.h"

// Attention over the cache. Decode rows take split-KV: on tensor cores where their types allow it
// (attention_decode.h), else by the kernel here, in which a block takes one token, one kv head with
// up to 8 of its query heads (so the cache is read once for all of them), and one split of the
// keys. Prefill runs go through tiles of rows, on tensor cores where their types allow it.
namespace mixtral::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kUnroll = 4;    // keys in flight a group of lanes
constexpr int kResident = 3;  // blocks of a multiprocessor

/// Online softmax over some keys: sums of p · v, relative to the largest score. Scores are in units
/// of log 2.
template <int m, int elements>
struct OnlineSoftmax {
  float largest[m], total[m], sums[m][elements];

  /// Combines it with the result over other keys, component by component.
  __device__ void combine(int i, float other_largest, float other_total,
                          const float (&other)[elements]) {
    const float most = fmaxf(largest[i], other_largest);
    const float base = most == -INFINITY ? 0.0f : most;
    const float mine = exp2_fast(largest[i] - base), theirs = exp2_fast(other_largest - base);
    largest[i] = most;
    total[i] = total[i] * mine + other_total * theirs;
#pragma unroll
    for (int c = 0; c < elements; ++c) sums[i][c] = sums[i][c] * mine + other[c] * theirs;
  }
};

/// Each group of `lanes` lanes takes every (kThreads / lanes)-th key of the split; a lane has
/// `packs` packs of `n` elements of it, `lanes` packs apart. m query heads at a time.
template <int n, int lanes, int packs, int m, class K>
__global__ void __launch_bounds__(kThreads, m > 4 || n * packs > 8 ? 2
                                            : m > 1                ? 3
                                                                   : 4)
    decode_attention(CachedSource<K> op, Splits to) {
  constexpr int kElements = n * packs, kGroups = kThreads / lanes;
  __shared__ float shared[kWarps][m][2 + lanes * kElements];
  allow_next();
  wait_for_previous();
  const int token = static_cast<int>(blockIdx.x);
  const int group = op.heads / op.kv_heads, chunks = (group + m - 1) / m;
  const int kv = static_cast<int>(blockIdx.y) / chunks;
  const int first_head = kv * group + static_cast<int>(blockIdx.y) % chunks * m;
  const int count = min(m, (kv + 1) * group - first_head);
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const int64_t first_row = int64_t{token} * op.heads + first_head;

  if (op.last_seen(token) < 0) {  // padding
    if (to.sums) return;
    for (int c = static_cast<int>(threadIdx.x); c < count * op.width; c += kThreads)
      to.out.write(first_row * op.width + c, 0);
    return;
  }
  const int sequence = op.sequence(token), first = op.first_seen(token);
  const int last = op.last_seen(token), split_keys = to.keys(last + 1 - first);
  const int begin = first + static_cast<int>(blockIdx.z) * split_keys;
  const int end = min(begin + split_keys, last + 1);
  if (begin >= end) return;

  float q[m][kElements];
#pragma unroll
  for (int i = 0; i < m; ++i)
#pragma unroll
    for (int c = 0; c < kElements; ++c) {
      const int column = (c / n * lanes + lane) * n + c % n;
      const bool used = i < count && column < op.width;
      q[i][c] = used ? op.query(token, first_head + i, column) * op.scale * kLog2E : 0.0f;
    }

  OnlineSoftmax<m, kElements> state;
#pragma unroll
  for (int i = 0; i < m; ++i) {
    state.largest[i] = -INFINITY;
    state.total[i] = 0;
#pragma unroll
    for (int c = 0; c < kElements; ++c) state.sums[i][c] = 0;
  }
  const K* keys = op.keys(kv) + lane * n;
  const K* values = op.values(kv) + lane * n;
  const int mine = static_cast<int>(threadIdx.x) / lanes;
  // Where the next keys stand is looked up while those before are read.
  int entry[kUnroll];
  const auto find = [&](int from) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int t = from + u * kGroups + mine;
      entry[u] = t < end ? op.place(sequence, t) : 0;
    }
  };
  find(begin);
  // All lanes of a warp take part in every iteration, so that its shuffles are whole.
  for (int from = begin; from < end; from += kGroups * kUnroll) {
    Pack<K, n> key[kUnroll][packs], value[kUnroll][packs];
    float key_scale[kUnroll], value_scale[kUnroll];  // of codes
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int t = from + u * kGroups + mine;
      const int64_t offset = op.offset(entry[u]);
      if constexpr (kIsCode<K>) {
        key_scale[u] = t < end ? load_float(op.key_scale(entry[u], kv)) : 0.0f;
        value_scale[u] = t < end ? load_float(op.value_scale(entry[u], kv)) : 0.0f;
      }
#pragma unroll
      for (int p = 0; p < packs; ++p) {
        const int column = (p * lanes + lane) * n;
        key[u][p] = {};
        value[u][p] = {};
        if (t < end && column < op.width) {
          key[u][p] = *reinterpret_cast<const Pack<K, n>*>(keys + offset + p * lanes * n);
          value[u][p] = *reinterpret_cast<const Pack<K, n>*>(values + offset + p * lanes * n);
        }
      }
    }
    find(from + kGroups * kUnroll);
#pragma unroll
    for (int i = 0; i < m; ++i) {
      float score[kUnroll], most = state.largest[i];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        float dot = 0;
#pragma unroll
        for (int c = 0; c < kElements; ++c)
          dot = fmaf(q[i][c], widen<float>(key[u][c / n].at[c % n]), dot);
        dot = warp_sum<lanes>(dot);
        if constexpr (kIsCode<K>) dot *= key_scale[u];
        const int t = from + u * kGroups + mine;
        score[u] = t < end ? dot : -INFINITY;
        most = fmaxf(most, score[u]);
      }
      const float base = most == -INFINITY ? 0.0f : most;
      const float shrink = exp2_fast(state.largest[i] - base);
      state.largest[i] = most;
      state.total[i] *= shrink;
#pragma unroll
      for (int c = 0; c < kElements; ++c) state.sums[i][c] *= shrink;
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        float p = exp2_fast(score[u] - base);
        state.total[i] += p;
        if constexpr (kIsCode<K>) p *= value_scale[u];
#pragma unroll
        for (int c = 0; c < kElements; ++c)
          state.sums[i][c] = fmaf(p, widen<float>(value[u][c / n].at[c % n]), state.sums[i][c]);
      }
    }
  }

  // Combine the groups of a warp, then the warps.
#pragma unroll
  for (int i = 0; i < m; ++i) {
#pragma unroll
    for (int step = lanes; step < kWarp; step *= 2) {
      float other[kElements];
      const float largest = __shfl_xor_sync(kAllLanes, state.largest[i], step);
      const float total = __shfl_xor_sync(kAllLanes, state.total[i], step);
#pragma unroll
      for (int c = 0; c < kElements; ++c)
        other[c] = __shfl_xor_sync(kAllLanes, state.sums[i][c], step);
      state.combine(i, largest, total, other);
    }
    if (threadIdx.x % kWarp < lanes) {
      float* place = shared[threadIdx.x / kWarp][i];
      place[0] = state.largest[i];
      place[1] = state.total[i];
#pragma unroll
      for (int c = 0; c < kElements; ++c) place[2 + c * lanes + lane] = state.sums[i][c];
    }
  }
  __syncthreads();
  if (static_cast<int>(threadIdx.x) >= lanes) return;
  for (int i = 0; i < count; ++i) {
    OnlineSoftmax<1, kElements> all;
    all.largest[0] = -INFINITY;
    all.total[0] = 0;
#pragma unroll
    for (int c = 0; c < kElements; ++c) all.sums[0][c] = 0;
    for (int w = 0; w < kWarps; ++w) {
      const float* place = shared[w][i];
      float other[kElements];
#pragma unroll
      for (int c = 0; c < kElements; ++c) other[c] = place[2 + c * lanes + lane];
      all.combine(0, place[0], place[1], other);
    }
    const int64_t row = first_row + i;
    const int64_t part = row * to.splits + blockIdx.z;
    if (to.sums && lane == 0) to.totals[part] = make_float2(all.largest[0], all.total[0]);
#pragma unroll
    for (int c = 0; c < kElements; ++c) {
      const int column = (c / n * lanes + lane) * n + c % n;
      if (column >= op.width) continue;
      if (to.sums)
        to.sums[part * op.width + column] = all.sums[0][c];
      else
        to.out.write(row * op.width + column, all.sums[0][c] / all.total[0]);
    }
  }
}

/// Calls f with the pack, the lanes a key and the packs a lane (see decode_attention).
template <class K, class F>
void with_lanes(const ops::CachedAttention& op, F&& f) {
  constexpr int n = kIsCode<K> ? 4 : kPackOf<K>;
  const int width = op.heads.width;
  if (!packs(n, width, {op.cache.keys, op.cache.values}) || width > 2 * kWarp * n) {
    return f(std::integral_constant<int, 1>{}, std::integral_constant<int, 32>{},
             std::integral_constant<int, 8>{});
  }
  const std::integral_constant<int, n> pack;
  const std::integral_constant<int, 1> one;
  if (width <= 8 * n) return f(pack, std::integral_constant<int, 8>{}, one);
  if (width <= 16 * n) return f(pack, std::integral_constant<int, 16>{}, one);
  const std::integral_constant<int, 32> all;
  if constexpr (kWarp * n < 256)
    if (width > kWarp * n) return f(pack, all, std::integral_constant<int, 2>{});
  f(pack, all, one);
}

/// Calls f with how many query heads a block takes.
template <class F>
void with_query_heads(int group, bool wide, F&& f) {
  if (group == 1 || wide) return f(std::integral_constant<int, 1>{});
  if (group <= 4) return f(std::integral_constant<int, 4>{});
  f(std::integral_constant<int, 8>{});
}

/// Tokens [begin, end) of the op.
ops::CachedAttention tokens_of(const ops::CachedAttention& op, int64_t begin, int64_t end) {
  ops::CachedAttention part = op;
  part.qkv = op.qkv.slice(begin, end);
  part.positions = op.positions.slice(begin, end);
  part.rows = op.rows.slice(begin, end);
  part.out = op.out.slice(begin, end);
  return part;
}

template <class K>
void decode(const ops::CachedAttention& op, int processors, bool early, Scratch& scratch,
            cudaStream_t stream) {
  if (mma_decode_attention(op, processors, early, scratch, stream)) return;
  const int64_t tokens = op.qkv.dim(0);
  const int group = op.heads.query / op.heads.kv;
  const auto source = cached_source<K>(op);
  with_lanes<K>(op, [&](auto pack, auto lanes, auto lane_packs) {
    with_query_heads(group, pack() == 1, [&](auto heads) {
      const int64_t grid_heads = op.heads.kv * divide_up(group, heads());
      const Splits to = split_keys(op, grid_heads, int64_t{processors} * kResident, scratch);
      chain(decode_attention<pack(), lanes(), lane_packs(), heads(), K>,
            dim3(blocks(tokens), blocks(grid_heads), blocks(to.splits)), kThreads, 0, stream,
            source, to);
      if (to.sums) launch_combine(source, to, stream);
    });
  });
}

template <class K>
void prefill(const ops::CachedAttention& op, cudaStream_t stream) {
  if (wgmma_cached_attention(op, stream) || mma_cached_attention(op, stream)) return;
  launch_flash_forward("cached_attention", cached_source<K>(op),
                       {op.out.data(), op.out.dtype() == Dtype::bf16}, nullptr, stream);
}

}  // namespace

void CudaBackend::run(const ops::CachedAttention& op) {
  use_device();
  // How many splits the keys have depends on the number of decode rows.
  const int64_t tokens = op.qkv.dim(0);
  const int64_t split = batch_invariant_ ? 0 : cuda_plan::split_kv_tokens(op);
  require_head_width(op.heads.width);
  // Of several tokens, one may see what another one has just written.
  const bool early = tokens == 1 && behind_ == Launch::append &&
                     appended_positions_ == op.positions.data() &&
                     appended_keys_ == op.cache.keys.data();
  with_cache_type(op.cache.type, [&](auto k) {
    using K = type_of<decltype(k)>;
    if (split > 0) decode<K>(tokens_of(op, 0, split), processors_, early, scratch(), stream_);
    if (split < tokens) prefill<K>(tokens_of(op, split, tokens), stream_);
  });
  check_launch("cached_attention");
  if (split > 0 && split == tokens) chained();
}

}  // namespace mixtral::cuda
