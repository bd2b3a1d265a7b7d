#include "cuda/attention_mma.h"
#include "cuda/backend.h"
#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "cuda/flash_forward.cuh"
#include "cuda/scratch.h"
#include "cuda/sequences.cuh"
#include "cuda/status.h"
#include "ops/attention.h"

// Attention over the cache. Decoding has a token or a few a sequence, and is bound by reading the
// cache: a block takes one token, one kv head with up to 8 of its query heads (so the cache is read
// once for all of them), and a stretch of the positions; a second launch joins the stretches. Runs
// of several tokens of one sequence (prefill) go through the tiles of flash_forward instead.
namespace mixtral::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kUnroll = 4;  // keys in flight a group of lanes

struct Stretches {
  Activations out;
  float* partial;  // [N, H, splits, 2 + h]: largest, total, sums; null when splits is 1
  int splits;
  int tile_rows;  // of flash_forward, or 0 when it is not used
};

/// Online softmax over some keys: sums of p · v, relative to the largest score. Scores are in units
/// of log 2.
template <int m, int elements>
struct Running {
  float largest[m], total[m], sums[m][elements];

  /// Joins another's, component by component.
  __device__ void join(int i, float other_largest, float other_total,
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

/// Each group of `lanes` lanes takes every (kThreads / lanes)-th key of the stretch; a lane has
/// `packs` packs of `n` elements of it, `lanes` packs apart. m query heads at a time.
template <int n, int lanes, int packs, int m, class K>
__global__ void __launch_bounds__(kThreads, m > 4 || n * packs > 8 ? 2
                                            : m > 1                ? 3
                                                                   : 4)
    cached_attention(CachedSource<K> op, Stretches to) {
  constexpr int kElements = n * packs, kGroups = kThreads / lanes;
  __shared__ float shared[kWarps][m][2 + lanes * kElements];
  const int token = static_cast<int>(blockIdx.x);
  if (to.tile_rows > 0 && op.in_long_run(token, to.tile_rows)) return;
  const int group = op.heads / op.kv_heads, chunks = (group + m - 1) / m;
  const int kv = static_cast<int>(blockIdx.y) / chunks;
  const int first_head = kv * group + static_cast<int>(blockIdx.y) % chunks * m;
  const int count = min(m, (kv + 1) * group - first_head);
  const int lane = static_cast<int>(threadIdx.x) % lanes;

  float q[m][kElements];
#pragma unroll
  for (int i = 0; i < m; ++i)
#pragma unroll
    for (int c = 0; c < kElements; ++c) {
      const int column = (c / n * lanes + lane) * n + c % n;
      const bool used = i < count && column < op.width;
      q[i][c] = used ? op.query(token, first_head + i, column) * op.scale * kLog2E : 0.0f;
    }

  const int slot = op.slot(token), first = op.first_seen(token), last = op.last_seen(token);
  const int stretch = (last + 1 - first + to.splits - 1) / to.splits;
  const int begin = first + static_cast<int>(blockIdx.z) * stretch;
  const int end = min(begin + stretch, last + 1);

  Running<m, kElements> state;
#pragma unroll
  for (int i = 0; i < m; ++i) {
    state.largest[i] = -INFINITY;
    state.total[i] = 0;
#pragma unroll
    for (int c = 0; c < kElements; ++c) state.sums[i][c] = 0;
  }
  // The stretch lies in the ring from start on, and wraps at most once.
  const int start = begin % op.capacity;
  const int64_t key_stride = int64_t{op.kv_heads} * op.width;
  const int64_t base = op.place(slot, 0, kv) + lane * n;
  // All lanes of a warp take part in every turn, so that its shuffles are whole.
  for (int turn = begin; turn < end; turn += kGroups * kUnroll) {
    Pack<K, n> key[kUnroll][packs], value[kUnroll][packs];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int t = turn + u * kGroups + static_cast<int>(threadIdx.x) / lanes;
      int index = start + t - begin;
      if (index >= op.capacity) index -= op.capacity;
      const int64_t row = base + index * key_stride;
#pragma unroll
      for (int p = 0; p < packs; ++p) {
        const int column = (p * lanes + lane) * n;
        key[u][p] = {};
        value[u][p] = {};
        if (t < end && column < op.width) {
          key[u][p] = *reinterpret_cast<const Pack<K, n>*>(op.keys + row + p * lanes * n);
          value[u][p] = *reinterpret_cast<const Pack<K, n>*>(op.values + row + p * lanes * n);
        }
      }
    }
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
        const int t = turn + u * kGroups + static_cast<int>(threadIdx.x) / lanes;
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
        const float p = exp2_fast(score[u] - base);
        state.total[i] += p;
#pragma unroll
        for (int c = 0; c < kElements; ++c)
          state.sums[i][c] = fmaf(p, widen<float>(value[u][c / n].at[c % n]), state.sums[i][c]);
      }
    }
  }

  // Join the groups of a warp, then the warps.
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
      state.join(i, largest, total, other);
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
    Running<1, kElements> all;
    all.largest[0] = -INFINITY;
    all.total[0] = 0;
#pragma unroll
    for (int c = 0; c < kElements; ++c) all.sums[0][c] = 0;
    for (int w = 0; w < kWarps; ++w) {
      const float* place = shared[w][i];
      float other[kElements];
#pragma unroll
      for (int c = 0; c < kElements; ++c) other[c] = place[2 + c * lanes + lane];
      all.join(0, place[0], place[1], other);
    }
    const int64_t row = int64_t{token} * op.heads + first_head + i;
    float* partial =
        to.partial ? to.partial + (row * to.splits + blockIdx.z) * (2 + op.width) : nullptr;
    if (partial && lane == 0) {
      partial[0] = all.largest[0];
      partial[1] = all.total[0];
    }
#pragma unroll
    for (int c = 0; c < kElements; ++c) {
      const int column = (c / n * lanes + lane) * n + c % n;
      if (column >= op.width) continue;
      if (partial)
        partial[2 + column] = all.sums[0][c];
      else
        to.out.write(row * op.width + column, all.sums[0][c] / all.total[0]);
    }
  }
}

constexpr int kMostSplits = 128;

/// A warp a head of a token.
template <class K>
__global__ void __launch_bounds__(kThreads) join_stretches(CachedSource<K> op, Stretches to) {
  __shared__ float shares[kWarps][kMostSplits];
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float* share = shares[threadIdx.x / kWarp];
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (row >= int64_t{op.tokens} * op.heads) return;
  if (to.tile_rows > 0 && op.in_long_run(static_cast<int>(row / op.heads), to.tile_rows)) return;
  const int size = 2 + op.width;
  const float* partial = to.partial + row * to.splits * size;
  float largest = -INFINITY, total = 0;
  for (int s = lane; s < to.splits; s += kWarp) largest = fmaxf(largest, partial[s * size]);
  largest = warp_reduce(largest, Max{});
  for (int s = lane; s < to.splits; s += kWarp) {
    share[s] = exp2_fast(partial[s * size] - largest);
    total += partial[s * size + 1] * share[s];
  }
  total = warp_sum(total);
  __syncwarp();
  for (int c = lane; c < op.width; c += kWarp) {
    float sum = 0;
#pragma unroll 8
    for (int s = 0; s < to.splits; ++s) sum = fmaf(partial[s * size + 2 + c], share[s], sum);
    to.out.write(row * op.width + c, sum / total);
  }
}

/// Calls f with the pack, the lanes a key and the packs a lane (see cached_attention).
template <class K, class F>
void with_lanes(const ops::CachedAttention& op, F&& f) {
  constexpr int n = kPackOf<K>;
  const int width = op.heads.width;
  if (!packs(n, width, {op.keys, op.values}) || width > 2 * kWarp * n) {
    CHECK(width <= 256);
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

}  // namespace

void CudaBackend::run(const ops::CachedAttention& op) {
  const int64_t tokens = op.qkv.dim(0), slots = op.keys.dim(0), capacity = op.keys.dim(1);
  if (tokens == 0) return;
  if (op.heads.width > 256)
    throw Error("--device cuda: attention heads are at most 256 wide; this model's are " +
                std::to_string(op.heads.width));
  const int group = op.heads.query / op.heads.kv;
  const bool runs = tokens >= kLeastRunOfTiles && tokens > slots;
  with_weight(op.keys.dtype(), [&](auto k) {
    using K = type_of<decltype(k)>;
    const Activations out{op.out.data(), op.out.dtype() == Dtype::bf16};
    const auto cached = cached_source<K>(op);
    int tile_rows = 0;
    if (runs) {
      tile_rows = mma_cached_rows(op);
      if (tile_rows > 0) {
        mma_cached_attention(op, stream_);
      } else {
        tile_rows = op.heads.width > 128 ? kFlashRows<256> : kFlashRows<128>;
        launch_flash_forward("cached_attention", cached, out, nullptr, stream_);
      }
    }
    with_lanes<K>(op, [&](auto pack, auto lanes, auto lane_packs) {
      with_query_heads(group, pack() == 1, [&](auto heads) {
        const int64_t grid_heads = op.heads.kv * divide_up(group, heads());
        // About four blocks a multiprocessor, and at least 64 positions each when the cache is
        // full.
        const int64_t splits = std::clamp<int64_t>(
            divide_up(int64_t{processors_} * 4, tokens * grid_heads), 1,
            std::max<int64_t>(1, std::min<int64_t>(capacity / 64, kMostSplits)));
        const int64_t rows = tokens * op.heads.query;
        float* partial =
            splits == 1 ? nullptr : scratch().take<float>(rows * splits * (2 + op.heads.width));
        const Stretches to{out, partial, static_cast<int>(splits), tile_rows};
        cached_attention<pack(), lanes(), lane_packs(), heads()>
            <<<dim3(blocks(tokens), blocks(grid_heads), blocks(splits)), kThreads, 0, stream_>>>(
                cached, to);
        if (partial)
          join_stretches<<<blocks(divide_up(rows, kWarps)), kThreads, 0, stream_>>>(cached, to);
      });
    });
  });
  check_launch("cached_attention");
}

}  // namespace mixtral::cuda
