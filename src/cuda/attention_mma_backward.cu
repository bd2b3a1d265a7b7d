#include "cuda/attention_flash.h"
#include "cuda/attention_mma.h"
#include "cuda/flash.cuh"
#include "cuda/mma.cuh"
#include "cuda/sequences.cuh"

// The gradient of attention on tensor cores, with the same bits every time: dq by blocks of
// queries, dk and dv by blocks of keys, so that no sum is shared between blocks. Scores are
// computed in both, 7 products instead of the 5 that atomic additions would need.
namespace mixtral::cuda {
namespace {

constexpr int kRows = 64;   // of a block's own side, 16 a warp
constexpr int kOther = 64;  // of the side that it walks over
constexpr int kPieces = kOther / 8;

struct Task {
  PackedSource<Bf16> source;
  const Bf16* dout;
  const float *log_sum, *delta;
  Bf16* dqkv;

  __device__ const Bf16* dout_row(int n, int head) const {
    return dout + (int64_t{n} * source.heads + head) * source.width;
  }
  __device__ Bf16* gradient(int n, int head) const {
    return dqkv + int64_t{n} * source.columns + head * source.width;
  }
};

template <int width>
struct Shared {
  MmaTile<kRows, width> own[2];        // queries and dout, or keys and values
  MmaTile<kOther, width> other[2][2];  // by stage: keys and values, or queries and dout
  int limit[kRows];
  float log_sum[2][kRows], delta[2][kRows];  // by stage where they belong to the other side
};

template <int width>
__device__ void write_rows(const Accumulator<1, width / 8>& sums, int first_row, int count,
                           float scale, const Task& op, int begin, int head) {
  using A = Accumulator<1, width / 8>;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = first_row + A::row(0, 2 * half);
    if (r >= count) continue;
    Bf16* row = op.gradient(begin + r, head);
#pragma unroll
    for (int j = 0; j < width / 8; ++j) {
      const int column = A::column(j, 0);
      if (column < op.source.width)
        *reinterpret_cast<unsigned*>(row + column) =
            pack_bf16(sums.at[0][j][2 * half] * scale, sums.at[0][j][2 * half + 1] * scale);
    }
  }
}

template <int width>
__global__ void __launch_bounds__(kMmaThreads, 2) mma_queries(Task op) {
  extern __shared__ __align__(16) char memory[];
  auto& shared = *reinterpret_cast<Shared<width>*>(memory);
  const auto& source = op.source;
  const int begin = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kRows;
  const int head = static_cast<int>(blockIdx.y), kv = head / source.group();
  const int count = min(kRows, source.tokens - begin);
  const int first_row = static_cast<int>(threadIdx.x) / kWarp * 16;

  shared.own[0].fetch(count, source.width, [&](int r) { return source.query(begin + r, head); });
  shared.own[1].fetch(count, source.width, [&](int r) { return op.dout_row(begin + r, head); });
  if (threadIdx.x < kRows) {
    const int n = begin + min(static_cast<int>(threadIdx.x), count - 1);
    shared.limit[threadIdx.x] = source.first_seen(n);
    shared.log_sum[0][threadIdx.x] = op.log_sum[int64_t{n} * source.heads + head] * kLog2E;
    shared.delta[0][threadIdx.x] = op.delta[int64_t{n} * source.heads + head];
  }
  __syncthreads();
  const int first = shared.limit[0], end = begin + count, whole_first = shared.limit[count - 1];
  const auto fetch = [&](int t, int stage) {
    const int keys = min(kOther, source.tokens - t);
    shared.other[stage][0].fetch(keys, source.width, [&](int r) { return source.key(t + r, kv); });
    shared.other[stage][1].fetch(keys, source.width,
                                 [&](int r) { return source.value(t + r, kv); });
    __pipeline_commit();
  };
  fetch(first, 0);

  Accumulator<1, width / 8> dq;
  dq.clear();
  using Scores = Accumulator<1, kPieces>;
  const float scale = source.scale * kLog2E;
  for (int t = first, stage = 0; t < end; t += kOther, stage ^= 1) {
    if (t + kOther < end)
      fetch(t + kOther, stage ^ 1);
    else
      __pipeline_commit();
    __pipeline_wait_prior(1);
    __syncthreads();
    Scores p, dp;
    p.clear();
    dp.clear();
    multiply_rows(shared.own[0], first_row, shared.other[stage][0], p);
    multiply_rows(shared.own[1], first_row, shared.other[stage][1], dp);
    const bool whole = t >= whole_first && t + kOther - 1 <= begin;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = first_row + Scores::row(0, 2 * half);
      const float log_sum = shared.log_sum[0][r], delta = shared.delta[0][r];
      const int limit = shared.limit[r];
#pragma unroll
      for (int j = 0; j < kPieces; ++j)
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          const int key = t + Scores::column(j, e);
          const bool seen = whole || (key >= limit && key <= begin + r);
          const float probability = seen ? exp2_fast(p.at[0][j][e] * scale - log_sum) : 0.0f;
          p.at[0][j][e] = probability * (dp.at[0][j][e] - delta);
        }
    }
    multiply_columns(p, shared.other[stage][0], dq);
    __syncthreads();
  }
  write_rows<width>(dq, first_row, count, source.scale, op, begin, head);
}

template <int width>
__global__ void __launch_bounds__(kMmaThreads, 2) mma_keys(Task op) {
  extern __shared__ __align__(16) char memory[];
  auto& shared = *reinterpret_cast<Shared<width>*>(memory);
  const auto& source = op.source;
  const int begin = static_cast<int>(blockIdx.x) * kRows, kv = static_cast<int>(blockIdx.y);
  const int count = min(kRows, source.tokens - begin);
  const int first_row = static_cast<int>(threadIdx.x) / kWarp * 16;

  shared.own[0].fetch(count, source.width, [&](int r) { return source.key(begin + r, kv); });
  shared.own[1].fetch(count, source.width, [&](int r) { return source.value(begin + r, kv); });
  if (threadIdx.x < kRows)
    shared.limit[threadIdx.x] =
        source.band.last_seeing(begin + min(static_cast<int>(threadIdx.x), count - 1));
  __syncthreads();
  const int end = shared.limit[count - 1] + 1, whole_last = shared.limit[0];
  // The query heads that share this kv head, one after another, tile by tile.
  const int tiles = (end - begin + kOther - 1) / kOther, turns = tiles * source.group();
  const auto fetch = [&](int turn, int stage) {
    const int head = kv * source.group() + turn / tiles, n = begin + turn % tiles * kOther;
    const int queries = min(kOther, source.tokens - n);
    shared.other[stage][0].fetch(queries, source.width,
                                 [&](int r) { return source.query(n + r, head); });
    shared.other[stage][1].fetch(queries, source.width,
                                 [&](int r) { return op.dout_row(n + r, head); });
    __pipeline_commit();
    if (threadIdx.x < kOther) {
      const int64_t row = n + min(static_cast<int>(threadIdx.x), queries - 1);
      shared.log_sum[stage][threadIdx.x] = op.log_sum[row * source.heads + head] * kLog2E;
      shared.delta[stage][threadIdx.x] = op.delta[row * source.heads + head];
    }
  };
  fetch(0, 0);

  Accumulator<1, width / 8> dk, dv;
  dk.clear();
  dv.clear();
  using Scores = Accumulator<1, kPieces>;
  const float scale = source.scale * kLog2E;
  for (int turn = 0, stage = 0; turn < turns; ++turn, stage ^= 1) {
    if (turn + 1 < turns)
      fetch(turn + 1, stage ^ 1);
    else
      __pipeline_commit();
    __pipeline_wait_prior(1);
    __syncthreads();
    Scores p, ds;
    p.clear();
    ds.clear();
    multiply_rows(shared.own[0], first_row, shared.other[stage][0], p);
    multiply_rows(shared.own[1], first_row, shared.other[stage][1], ds);
    const int n = begin + turn % tiles * kOther;
    const bool whole =
        n >= begin + kRows - 1 && n + kOther - 1 <= whole_last;  // in the band, no row missing
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = first_row + Scores::row(0, 2 * half);
      const int limit = shared.limit[r];
#pragma unroll
      for (int j = 0; j < kPieces; ++j)
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          const int column = Scores::column(j, e), query = n + column;
          const bool seen = whole || (query >= begin + r && query <= limit);
          const float probability =
              seen ? exp2_fast(p.at[0][j][e] * scale - shared.log_sum[stage][column]) : 0.0f;
          p.at[0][j][e] = probability;
          ds.at[0][j][e] = probability * (ds.at[0][j][e] - shared.delta[stage][column]);
        }
    }
    multiply_columns(p, shared.other[stage][1], dv);
    multiply_columns(ds, shared.other[stage][0], dk);
    __syncthreads();
  }
  write_rows<width>(dk, first_row, count, source.scale, op, begin, source.heads + kv);
  write_rows<width>(dv, first_row, count, 1.0f, op, begin, source.heads + source.kv_heads + kv);
}

}  // namespace

bool mma_attention_backward(const ops::AttentionBackward& op, cudaStream_t stream) {
  for (const Tensor& tensor : {op.qkv, op.out, op.dout, op.dqkv})
    if (tensor.dtype() != Dtype::bf16 || reinterpret_cast<uintptr_t>(tensor.data()) % 16 != 0)
      return false;
  if (op.heads.width % 8 != 0 || op.heads.width > 128) return false;
  flash_delta_of(op, stream);
  const Task task{packed_source<Bf16>(op), data<Bf16>(op.dout), data<float>(op.log_sum),
                  data<float>(op.delta), data<Bf16>(op.dqkv)};
  const unsigned tiles = blocks(divide_up(op.qkv.dim(0), kRows));
  const auto run = [&](auto width) {
    const auto queries = mma_queries<width()>;
    const auto keys = mma_keys<width()>;
    constexpr size_t kBytes = sizeof(Shared<width()>);
    allow_shared(queries, kBytes, "attention_backward");
    allow_shared(keys, kBytes, "attention_backward");
    queries<<<dim3(tiles, blocks(op.heads.query)), kMmaThreads, kBytes, stream>>>(task);
    keys<<<dim3(tiles, blocks(op.heads.kv)), kMmaThreads, kBytes, stream>>>(task);
  };
  if (op.heads.width <= 64)
    run(std::integral_constant<int, 64>{});
  else
    run(std::integral_constant<int, 128>{});
  check_launch("attention_backward");
  return true;
}

}  // namespace mixtral::cuda
