#include "cuda/attention_flash.h"
#include "cuda/dispatch.h"
#include "cuda/flash_forward.cuh"
#include "cuda/sequences.cuh"
#include "cuda/status.h"

// Blocked attention in f32 arithmetic (Dao 2023, "FlashAttention-2"): no score matrix in memory. A
// block has a tile of queries (forward, dq) or of keys (dk, dv) of one head, and walks over the
// other side's tiles within the band that its rows see. Nothing is added to from two blocks: dk and
// dv of a kv head sum over its query heads inside one block.
namespace mixtral::cuda {
namespace {

/// delta[n, i] = Σ_h dout · out: a warp a head of a token.
template <int n, class T>
__global__ void __launch_bounds__(256)
    flash_delta(const T* out, const T* dout, int64_t rows, int width, float* delta) {
  const int64_t row = int64_t{blockIdx.x} * 8 + threadIdx.x / kWarp;
  if (row >= rows) return;
  float sum = 0;
  for (int c = static_cast<int>(threadIdx.x) % kWarp * n; c < width; c += kWarp * n) {
    float a[n], b[n];
    load(out + row * width + c, a);
    load(dout + row * width + c, b);
#pragma unroll
    for (int j = 0; j < n; ++j) sum += a[j] * b[j];
  }
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp == 0) delta[row] = sum;
}

template <class T>
struct Gradient {
  PackedSource<T> shape;
  const T* dout;
  const float *log_sum, *delta;
  T* dqkv;

  __device__ const T* dout_row(int n, int head) const {
    return dout + (int64_t{n} * shape.heads + head) * shape.width;
  }
  __device__ T* gradient(int n, int head) const {
    return dqkv + int64_t{n} * shape.columns + head * shape.width;
  }
};

template <int width>
struct BackwardTiles {
  static constexpr int kRows = kFlashRows<width>;
  Tile<kRows, width> q, k, v, dout;
  Tile<kRows, kRows> p, ds;
  int limit[kRows];
  float log_sum[kRows], delta[kRows];
};

template <int rows, int width, class T>
__device__ void write_rows(const float (&sums)[rows / 16][width / 16], int count, int used,
                           float scale, const Gradient<T>& op, int begin, int head) {
  using S = Share<rows>;
#pragma unroll
  for (int i = 0; i < S::kRows; ++i) {
    if (S::row(i) >= count) continue;
    T* row = op.gradient(begin + S::row(i), head);
#pragma unroll
    for (int c = 0; c < width / 16; ++c)
      if (S::column(c) < used) row[S::column(c)] = narrow<T>(sums[i][c] * scale);
  }
}

/// dq of a tile of queries of one head.
template <int width, class T>
__global__ void __launch_bounds__(kFlashThreads) flash_queries(Gradient<T> op) {
  extern __shared__ __align__(16) char memory[];
  auto& tiles = *reinterpret_cast<BackwardTiles<width>*>(memory);
  constexpr int kRows = BackwardTiles<width>::kRows;
  using S = Share<kRows>;
  const PackedSource<T>& shape = op.shape;
  const int begin = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kRows;
  const int head = static_cast<int>(blockIdx.y), kv = head / shape.group();
  const int count = min(kRows, shape.tokens - begin);

  tiles.q.read(count, shape.width, [&](int r) { return shape.query(begin + r, head); });
  tiles.dout.read(count, shape.width, [&](int r) { return op.dout_row(begin + r, head); });
  if (threadIdx.x < kRows) {
    const int n = begin + min(static_cast<int>(threadIdx.x), count - 1);
    tiles.limit[threadIdx.x] = shape.band.first_seen(n);
    tiles.log_sum[threadIdx.x] = op.log_sum[int64_t{n} * shape.heads + head];
    tiles.delta[threadIdx.x] = op.delta[int64_t{n} * shape.heads + head];
  }
  __syncthreads();

  float dq[S::kRows][width / 16] = {};
  for (int t = tiles.limit[0] / kRows * kRows; t < begin + count; t += kRows) {
    const int keys = min(kRows, shape.tokens - t);
    __syncthreads();
    tiles.k.read(keys, shape.width, [&](int r) { return shape.key(t + r, kv); });
    tiles.v.read(keys, shape.width, [&](int r) { return shape.value(t + r, kv); });
    __syncthreads();
    float score[S::kRows][S::kRows], dp[S::kRows][S::kRows];
    multiply_transposed(tiles.q, tiles.k, score);
    multiply_transposed(tiles.dout, tiles.v, dp);
#pragma unroll
    for (int i = 0; i < S::kRows; ++i) {
      const int row = S::row(i), query = begin + row;
#pragma unroll
      for (int j = 0; j < S::kRows; ++j) {
        const int key = t + S::column(j);
        const bool seen = key >= tiles.limit[row] && key <= query;
        const float p = seen ? expf(score[i][j] * shape.scale - tiles.log_sum[row]) : 0.0f;
        tiles.ds.row(row)[S::column(j)] = p * (dp[i][j] - tiles.delta[row]);
      }
    }
    __syncthreads();
    multiply_add(tiles.ds, tiles.k, dq);
  }
  write_rows<kRows, width>(dq, count, shape.width, shape.scale, op, begin, head);
}

/// dk and dv of a tile of keys of one kv head, over all of its query heads.
template <int width, class T>
__global__ void __launch_bounds__(kFlashThreads) flash_keys(Gradient<T> op) {
  extern __shared__ __align__(16) char memory[];
  auto& tiles = *reinterpret_cast<BackwardTiles<width>*>(memory);
  constexpr int kRows = BackwardTiles<width>::kRows;
  using S = Share<kRows>;
  const PackedSource<T>& shape = op.shape;
  const int begin = static_cast<int>(blockIdx.x) * kRows, kv = static_cast<int>(blockIdx.y);
  const int count = min(kRows, shape.tokens - begin);

  tiles.k.read(count, shape.width, [&](int r) { return shape.key(begin + r, kv); });
  tiles.v.read(count, shape.width, [&](int r) { return shape.value(begin + r, kv); });
  if (threadIdx.x < kRows)
    tiles.limit[threadIdx.x] =
        shape.band.last_seeing(begin + min(static_cast<int>(threadIdx.x), count - 1));
  __syncthreads();
  const int end = tiles.limit[count - 1] + 1;

  float dk[S::kRows][width / 16] = {}, dv[S::kRows][width / 16] = {};
  for (int head = kv * shape.group(); head < (kv + 1) * shape.group(); ++head) {
    for (int n = begin; n < end; n += kRows) {
      const int queries = min(kRows, shape.tokens - n);
      __syncthreads();
      tiles.q.read(queries, shape.width, [&](int r) { return shape.query(n + r, head); });
      tiles.dout.read(queries, shape.width, [&](int r) { return op.dout_row(n + r, head); });
      if (threadIdx.x < kRows) {
        const int64_t row = n + min(static_cast<int>(threadIdx.x), queries - 1);
        tiles.log_sum[threadIdx.x] = op.log_sum[row * shape.heads + head];
        tiles.delta[threadIdx.x] = op.delta[row * shape.heads + head];
      }
      __syncthreads();
      float score[S::kRows][S::kRows], dp[S::kRows][S::kRows];
      multiply_transposed(tiles.k, tiles.q, score);
      multiply_transposed(tiles.v, tiles.dout, dp);
#pragma unroll
      for (int i = 0; i < S::kRows; ++i) {
        const int row = S::row(i), key = begin + row;
#pragma unroll
        for (int j = 0; j < S::kRows; ++j) {
          const int column = S::column(j), query = n + column;
          const bool seen = query >= key && query <= tiles.limit[row] && column < queries;
          const float p = seen ? expf(score[i][j] * shape.scale - tiles.log_sum[column]) : 0.0f;
          tiles.p.row(row)[column] = p;
          tiles.ds.row(row)[column] = p * (dp[i][j] - tiles.delta[column]);
        }
      }
      __syncthreads();
      multiply_add(tiles.p, tiles.dout, dv);
      multiply_add(tiles.ds, tiles.q, dk);
    }
  }
  write_rows<kRows, width>(dk, count, shape.width, shape.scale, op, begin, shape.heads + kv);
  write_rows<kRows, width>(dv, count, shape.width, 1.0f, op, begin,
                           shape.heads + shape.kv_heads + kv);
}

}  // namespace

void flash_attention(const ops::Attention& op, cudaStream_t stream) {
  with_activation(op.qkv.dtype(), [&](auto t) {
    using T = type_of<decltype(t)>;
    launch_flash_forward("attention", packed_source<T>(op),
                         {op.out.data(), op.out.dtype() == Dtype::bf16}, data<float>(op.log_sum),
                         stream);
  });
}

void flash_delta_of(const ops::AttentionBackward& op, cudaStream_t stream) {
  const int64_t rows = op.delta.numel();
  with_activation(op.qkv.dtype(), [&](auto t) {
    using T = type_of<decltype(t)>;
    with_packs<kPackOf<T>>(op.heads.width, {op.out, op.dout}, [&](auto pack) {
      flash_delta<pack()><<<blocks(divide_up(rows, 8)), 256, 0, stream>>>(
          data<T>(op.out), data<T>(op.dout), rows, op.heads.width, data<float>(op.delta));
    });
  });
  check_launch("attention_backward");
}

void flash_attention_backward(const ops::AttentionBackward& op, cudaStream_t stream) {
  flash_delta_of(op, stream);
  with_activation(op.qkv.dtype(), [&](auto t) {
    using T = type_of<decltype(t)>;
    const Gradient<T> gradient{packed_source<T>(op), data<T>(op.dout), data<float>(op.log_sum),
                               data<float>(op.delta), data<T>(op.dqkv)};
    with_head_width(op.heads.width, [&](auto width) {
      using Tiles = BackwardTiles<width()>;
      const auto queries = flash_queries<width(), T>;
      const auto keys = flash_keys<width(), T>;
      allow_shared(queries, sizeof(Tiles), "attention_backward");
      allow_shared(keys, sizeof(Tiles), "attention_backward");
      const unsigned tiles = blocks(divide_up(op.qkv.dim(0), Tiles::kRows));
      queries<<<dim3(tiles, blocks(op.heads.query)), kFlashThreads, sizeof(Tiles), stream>>>(
          gradient);
      keys<<<dim3(tiles, blocks(op.heads.kv)), kFlashThreads, sizeof(Tiles), stream>>>(gradient);
    });
  });
  check_launch("attention_backward");
}

}  // namespace mixtral::cuda
