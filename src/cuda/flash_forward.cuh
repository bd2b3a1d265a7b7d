#pragma once

#include "cuda/flash.cuh"
#include "cuda/sequences.cuh"

namespace mixtral::cuda {

template <int width>
struct ForwardTiles {
  static constexpr int kRows = kFlashRows<width>;
  Tile<kRows, width> q, k, v;
  Tile<kRows, kRows> p;
  int sequence[kRows], first[kRows], last[kRows];
};

/// Attention of a tile of rows of one head (Dao 2023, "FlashAttention-2"). Source says where
/// queries, keys and values are (see sequences.cuh). Rows that see no key become 0.
template <int width, class Source>
__global__ void __launch_bounds__(kFlashThreads)
    flash_forward(Source op, Activations out, float* log_sum) {
  extern __shared__ __align__(16) char memory[];
  auto& tiles = *reinterpret_cast<ForwardTiles<width>*>(memory);
  constexpr int kRows = ForwardTiles<width>::kRows;
  using S = Share<kRows>;
  // The last tiles see the most keys: start with them.
  const int begin = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kRows;
  const int head = static_cast<int>(blockIdx.y), kv = head / (op.heads / op.kv_heads);
  const int count = min(kRows, op.tokens - begin);

  tiles.q.read_with(count, op.width, [&](int r, int c) { return op.query(begin + r, head, c); });
  if (threadIdx.x < kRows) {
    const int n = begin + min(static_cast<int>(threadIdx.x), count - 1);
    tiles.sequence[threadIdx.x] = op.sequence(n);
    tiles.first[threadIdx.x] = op.first_seen(n);
    tiles.last[threadIdx.x] = op.last_seen(n);
  }
  __syncthreads();

  float sums[S::kRows][width / 16] = {};
  float largest[S::kRows], total[S::kRows];
  for (int i = 0; i < S::kRows; ++i) {
    largest[i] = -INFINITY;
    total[i] = 0;
  }
  for (int run = 0, run_end; run < count; run = run_end) {
    const int sequence = tiles.sequence[run];
    run_end = run + 1;
    int first = tiles.first[run], last = tiles.last[run];
    for (; run_end < count && tiles.sequence[run_end] == sequence; ++run_end) {
      first = min(first, tiles.first[run_end]);
      last = max(last, tiles.last[run_end]);
    }
    for (int t = op.first_key(first, kRows); t <= last; t += kRows) {
      const int keys = min(kRows, last + 1 - t);
      __syncthreads();
      const auto place = [&](int r) { return op.place(sequence, max(t + r, first)); };
      tiles.k.read(keys, op.width, [&](int r) { return op.key_row(kv, place(r)); });
      tiles.v.read(keys, op.width, [&](int r) { return op.value_row(kv, place(r)); });
      __syncthreads();
      float score[S::kRows][S::kRows];
      multiply_transposed(tiles.q, tiles.k, score);
#pragma unroll
      for (int i = 0; i < S::kRows; ++i) {
        const int row = S::row(i);
        const bool inside = row >= run && row < run_end;
        float most = largest[i];
#pragma unroll
        for (int j = 0; j < S::kRows; ++j) {
          const int key = t + S::column(j);
          const bool seen = inside && key >= tiles.first[row] && key <= tiles.last[row];
          score[i][j] = seen ? score[i][j] * op.scale : -INFINITY;
          most = fmaxf(most, score[i][j]);
        }
        most = warp_reduce<16>(most, Max{});
        // A row that has seen no key yet stays at −∞; its exponentials must not become NaN.
        const float base = most == -INFINITY ? 0.0f : most;
        const float shrink = expf(largest[i] - base);
        largest[i] = most;
        if (inside) total[i] *= shrink;
#pragma unroll
        for (int j = 0; j < S::kRows; ++j) {
          const float p = expf(score[i][j] - base);
          if (inside) total[i] += p;
          tiles.p.row(row)[S::column(j)] = p;
        }
        if (inside) {
#pragma unroll
          for (int c = 0; c < width / 16; ++c) sums[i][c] *= shrink;
        }
      }
      __syncthreads();
      multiply_add(tiles.p, tiles.v, sums);
    }
  }
#pragma unroll
  for (int i = 0; i < S::kRows; ++i) {
    const int row = S::row(i);
    const float all = warp_sum<16>(total[i]);
    if (row >= count) continue;
    const float divisor = all == 0 ? 1.0f : all;  // 0: padding, whose sums are 0, too
    const int64_t place = int64_t{begin + row} * op.heads + head;
#pragma unroll
    for (int c = 0; c < width / 16; ++c)
      if (S::column(c) < op.width) out.write(place * op.width + S::column(c), sums[i][c] / divisor);
    if (log_sum && S::tx() == 0) log_sum[place] = largest[i] + logf(all);
  }
}

/// Launches flash_forward over all tokens and heads.
template <class Source>
void launch_flash_forward(const char* name, const Source& source, const Activations& out,
                          float* log_sum, cudaStream_t stream) {
  with_head_width(source.width, [&](auto width) {
    using Tiles = ForwardTiles<width()>;
    const auto kernel = flash_forward<width(), Source>;
    allow_shared(kernel, sizeof(Tiles), name);
    const dim3 grid(blocks(divide_up(source.tokens, Tiles::kRows)), blocks(source.heads));
    kernel<<<grid, kFlashThreads, sizeof(Tiles), stream>>>(source, out, log_sum);
  });
  check_launch(name);
}

}  // namespace mixtral::cuda
