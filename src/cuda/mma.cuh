#pragma once

#include <cuda_pipeline_primitives.h>

#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "cuda/status.h"

/// Attention's tiles on tensor cores by mma.sync (m16n8k16, bf16 in, f32 out): tiles of bf16 rows
/// in shared memory with their 16-byte chunks swizzled by row, so that ldmatrix meets no bank
/// conflict, and filled by asynchronous copies. One warp holds `m` times 16 rows of a result.
namespace mixtral::cuda {

constexpr int kMmaThreads = 128;

/// `rows` rows of `width` bf16, width 64 or 128.
template <int rows, int width>
struct MmaTile {
  static constexpr int kRows = rows, kWidth = width, kChunks = width / 8;
  alignas(16) Bf16 at[rows * width];

  __device__ Bf16* chunk(int row, int c) { return at + row * width + ((c ^ (row & 7)) * 8); }
  __device__ unsigned address(int row, int c) const {
    return static_cast<unsigned>(
        __cvta_generic_to_shared(at + row * width + ((c ^ (row & 7)) * 8)));
  }

  /// Starts copying `count` rows of `used` columns (a multiple of 8); the rest becomes 0.
  template <class Row>
  __device__ void fetch(int count, int used, const Row& source) {
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < rows * kChunks; i += kMmaThreads) {
      const int r = i / kChunks, c = i % kChunks;
      const bool inside = r < count && c * 8 < used;
      const Bf16* from = source(inside ? r : 0) + (inside ? c * 8 : 0);
      __pipeline_memcpy_async(chunk(r, c), from, 16, inside ? 0 : 16);
    }
  }
};

/// Starts copying `count` rows into two tiles, as MmaTile::fetch: row r begins at offset(r) behind
/// each of the two sources.
template <int rows, int width, class Offset>
__device__ void fetch_rows(MmaTile<rows, width>& first, const Bf16* first_source,
                           MmaTile<rows, width>& second, const Bf16* second_source, int count,
                           int used, const Offset& offset) {
  constexpr int kChunks = width / 8;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < rows * kChunks; i += kMmaThreads) {
    const int r = i / kChunks, c = i % kChunks;
    const bool inside = r < count && c * 8 < used;
    const int64_t from = offset(inside ? r : 0) + (inside ? c * 8 : 0);
    __pipeline_memcpy_async(first.chunk(r, c), first_source + from, 16, inside ? 0 : 16);
    __pipeline_memcpy_async(second.chunk(r, c), second_source + from, 16, inside ? 0 : 16);
  }
}

__device__ inline void load_matrices(unsigned (&to)[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address));
}
__device__ inline void load_matrices_transposed(unsigned (&to)[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address));
}

/// c += a b for 16 × 16 by 16 × 8.
__device__ inline void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// A warp's 16·m rows of a result with 8·n columns. Thread `lane` holds of each 16 × 8 piece, in
/// order, columns 2(lane mod 4) and + 1 of row lane / 4, then of row lane / 4 + 8.
template <int m, int n>
struct Accumulator {
  float at[m][n][4];

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < m; ++i)
#pragma unroll
      for (int j = 0; j < n; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) at[i][j][e] = 0;
  }
  /// The row (within the warp's) and column of an element.
  static __device__ int row(int i, int e) {
    return i * 16 + static_cast<int>(threadIdx.x) % kWarp / 4 + e / 2 * 8;
  }
  static __device__ int column(int j, int e) {
    return j * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + e % 2;
  }
};

/// c[rows, t] += Σ over the width of a[first + row] · b[t]: both tiles as they lie.
template <int m, int rows_a, int rows_b, int width>
__device__ inline void multiply_rows(const MmaTile<rows_a, width>& a, int first,
                                     const MmaTile<rows_b, width>& b,
                                     Accumulator<m, rows_b / 8>& c) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int k = 0; k < width / 16; ++k) {
    unsigned left[m][4];
#pragma unroll
    for (int i = 0; i < m; ++i)
      load_matrices(left[i], a.address(first + i * 16 + lane % 16, 2 * k + lane / 16));
#pragma unroll
    for (int j = 0; j < rows_b / 16; ++j) {
      unsigned right[4];
      load_matrices(right, b.address(j * 16 + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
#pragma unroll
      for (int i = 0; i < m; ++i) {
        mma(c.at[i][2 * j], left[i], right[0], right[1]);
        mma(c.at[i][2 * j + 1], left[i], right[2], right[3]);
      }
    }
  }
}

/// c[rows, w] += Σ_t p[rows, t] · b[t][w], with p (a result of multiply_rows) rounded to bf16.
template <int m, int rows_b, int width>
__device__ inline void multiply_columns(const Accumulator<m, rows_b / 8>& p,
                                        const MmaTile<rows_b, width>& b,
                                        Accumulator<m, width / 8>& c) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int k = 0; k < rows_b / 16; ++k) {
    unsigned left[m][4];
#pragma unroll
    for (int i = 0; i < m; ++i) {
      const auto& low = p.at[i][2 * k];
      const auto& high = p.at[i][2 * k + 1];
      left[i][0] = pack_bf16(low[0], low[1]);
      left[i][1] = pack_bf16(low[2], low[3]);
      left[i][2] = pack_bf16(high[0], high[1]);
      left[i][3] = pack_bf16(high[2], high[3]);
    }
#pragma unroll
    for (int j = 0; j < width / 16; ++j) {
      unsigned right[4];
      load_matrices_transposed(right, b.address(k * 16 + lane % 16, 2 * j + lane / 16));
#pragma unroll
      for (int i = 0; i < m; ++i) {
        mma(c.at[i][2 * j], left[i], right[0], right[1]);
        mma(c.at[i][2 * j + 1], left[i], right[2], right[3]);
      }
    }
  }
}

}  // namespace mixtral::cuda
