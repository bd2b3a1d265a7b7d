#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "cuda/product.h"

namespace mixtral::cuda {
namespace {

/// 32 columns a block, whose 8 warps take every eighth row.
__global__ void __launch_bounds__(256)
    sum_rows(const float* partial, int64_t rows, int64_t width, float* total) {
  __shared__ float sums[8][kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t column = int64_t{blockIdx.x} * kWarp + lane;
  float sum = 0;
  if (column < width)
    for (int64_t r = warp; r < rows; r += 8) sum += partial[r * width + column];
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp == 0 && column < width) {
    for (int w = 1; w < 8; ++w) sum += sums[w][lane];
    total[column] += sum;
  }
}

}  // namespace

void add_columns(const float* partial, int64_t rows, int64_t width, float* total,
                 cudaStream_t stream) {
  sum_rows<<<blocks(divide_up(width, kWarp)), 256, 0, stream>>>(partial, rows, width, total);
}

}  // namespace mixtral::cuda
