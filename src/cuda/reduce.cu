#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "cuda/product.h"

namespace mixtral::cuda {
namespace {

/// 32 columns a block, whose warps take the rows in turn.
__global__ void __launch_bounds__(1024)
    sum_rows(const float* partial, int64_t rows, int64_t width, float* total) {
  __shared__ float sums[32][kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  const int64_t column = int64_t{blockIdx.x} * kWarp + lane;
  float sum = 0;
  if (column < width) {
#pragma unroll 8
    for (int64_t r = warp; r < rows; r += warps) sum += partial[r * width + column];
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp == 0 && column < width) {
    for (int w = 1; w < warps; ++w) sum += sums[w][lane];
    total[column] += sum;
  }
}

}  // namespace

void add_columns(const float* partial, int64_t rows, int64_t width, float* total,
                 cudaStream_t stream) {
  // Many rows take as many warps as there can be: what it waits for is memory's answers, in turn.
  const unsigned threads = rows > 64 ? 1024 : 256;
  sum_rows<<<blocks(divide_up(width, kWarp)), threads, 0, stream>>>(partial, rows, width, total);
}

}  // namespace mixtral::cuda
