#pragma once

#include <cuda_runtime_api.h>

#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "cuda/kv_view.cuh"
#include "cuda/status.h"

/// Tiles for attention without tensor cores: operands are widened to f32 in shared memory, and 256
/// threads, as 16 × 16, compute a square of rows × columns each. What the tensor-core paths decline
/// goes here: f32, unusual head widths, ragged cases. Bound by shared memory at about a third of
/// the chip's f32 rate.
namespace mixtral::cuda {

constexpr int kFlashThreads = 256;

/// A tile of `rows` rows of up to `width` floats; the padding keeps 16-byte accesses of eight
/// neighbouring rows in different banks.
template <int rows, int width>
struct Tile {
  static constexpr int kRows = rows, kWidth = width, kStride = width + 4;
  float at[rows * kStride];

  __device__ float* row(int r) { return at + r * kStride; }
  __device__ const float* row(int r) const { return at + r * kStride; }

  /// Fills `count` rows with source(r, c) in `used` columns. The rest of the tile becomes 0.
  template <class Source>
  __device__ void read_with(int count, int used, const Source& source) {
    for (int i = static_cast<int>(threadIdx.x); i < rows * width; i += kFlashThreads) {
      const int r = i / width, c = i % width;
      row(r)[c] = r < count && c < used ? source(r, c) : 0.0f;
    }
  }
  /// The same from row pointers.
  template <class Row>
  __device__ void read(int count, int used, const Row& source) {
    read_with(count, used, [&](int r, int c) { return widen<float>(source(r)[c]); });
  }
};

/// What thread (ty, tx) of 16 × 16 owns: rows ty·R .. and columns tx, tx + 16, ….
template <int rows>
struct Share {
  static constexpr int kRows = rows / 16;
  static __device__ int tx() { return static_cast<int>(threadIdx.x) % 16; }
  static __device__ int ty() { return static_cast<int>(threadIdx.x) / 16; }
  static __device__ int row(int i) { return ty() * kRows + i; }
  static __device__ int column(int j) { return tx() + 16 * j; }
};

/// dots[i][j] = a[row i] · b[column j]
template <int rows, int width>
__device__ inline void multiply_transposed(const Tile<rows, width>& a, const Tile<rows, width>& b,
                                           float (&dots)[rows / 16][rows / 16]) {
  using S = Share<rows>;
#pragma unroll
  for (int i = 0; i < S::kRows; ++i)
#pragma unroll
    for (int j = 0; j < S::kRows; ++j) dots[i][j] = 0;
#pragma unroll 4
  for (int c = 0; c < width; c += 4) {
    float4 left[S::kRows], right[S::kRows];
#pragma unroll
    for (int i = 0; i < S::kRows; ++i)
      left[i] = *reinterpret_cast<const float4*>(a.row(S::row(i)) + c);
#pragma unroll
    for (int j = 0; j < S::kRows; ++j)
      right[j] = *reinterpret_cast<const float4*>(b.row(S::column(j)) + c);
#pragma unroll
    for (int i = 0; i < S::kRows; ++i)
#pragma unroll
      for (int j = 0; j < S::kRows; ++j) {
        float& dot = dots[i][j];
        dot = fmaf(left[i].x, right[j].x, dot);
        dot = fmaf(left[i].y, right[j].y, dot);
        dot = fmaf(left[i].z, right[j].z, dot);
        dot = fmaf(left[i].w, right[j].w, dot);
      }
  }
}

/// sums[i][j] += Σ_t p[row i][t] · b[t][column j]
template <int rows, int width>
__device__ inline void multiply_add(const Tile<rows, rows>& p, const Tile<rows, width>& b,
                                    float (&sums)[rows / 16][width / 16]) {
  using S = Share<rows>;
#pragma unroll 4
  for (int t = 0; t < rows; ++t) {
    float left[S::kRows];
#pragma unroll
    for (int i = 0; i < S::kRows; ++i) left[i] = p.row(S::row(i))[t];
#pragma unroll
    for (int j = 0; j < width / 16; ++j) {
      const float right = b.row(t)[S::column(j)];
#pragma unroll
      for (int i = 0; i < S::kRows; ++i) sums[i][j] = fmaf(left[i], right, sums[i][j]);
    }
  }
}

/// Rows of a tile for a head width: fewer where a row is wide, so that tiles fit in shared memory.
template <int width>
constexpr int kFlashRows = width > 128 ? 32 : 64;

/// Calls f with the tile width for heads of `width`: 32, 64, 128 or 256.
template <class F>
void with_head_width(int width, F&& f) {
  if (width <= 32) return f(std::integral_constant<int, 32>{});
  if (width <= 64) return f(std::integral_constant<int, 64>{});
  if (width <= 128) return f(std::integral_constant<int, 128>{});
  if (width <= 256) return f(std::integral_constant<int, 256>{});
  require_head_width(width);
}

/// Asks for a kernel's dynamic shared memory, before its launch.
template <class Kernel>
void allow_shared(Kernel* kernel, size_t bytes, const char* op) {
  if (bytes > 48 * 1024)
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(bytes)),
               op);
}

}  // namespace mixtral::cuda
