#pragma once

#include "cuda/chain.cuh"
#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "cuda/status.h"

/// Loops over the rows of matrices: a warp takes four packs a lane of one row, so that few rows
/// still spread over the whole device and each thread has several accesses in flight.
namespace mixtral::cuda {

constexpr int kRowWarps = 4;
constexpr int kRowUnroll = 4;

/// When the kernel behind may begin: at once, or after the wait (see chain.cuh).
enum class After : bool { start, wait };

/// Calls body.at<n>(row, column) for packs of n elements that cover [rows, width].
template <int n, After after, class Body>
__global__ void __launch_bounds__(kRowWarps* kWarp) over_rows(int64_t rows, int width, Body body) {
  if (after == After::start) allow_next();
  wait_for_previous();
  if (after == After::wait) allow_next();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t row = int64_t{blockIdx.x} * kRowWarps + warp;
  if (row >= rows) return;
  const int first = static_cast<int>(blockIdx.y) * kRowUnroll * kWarp + lane;
#pragma unroll
  for (int i = 0; i < kRowUnroll; ++i) {
    const int column = (first + i * kWarp) * n;
    if (column < width) body.template at<n>(row, column);
  }
}

template <int n, After after = After::start, class Body>
void each_row(const char* op, int64_t rows, int64_t width, std::initializer_list<Tensor> tensors,
              cudaStream_t stream, const Body& body) {
  if (rows == 0 || width == 0) return;
  with_packs<n>(width, tensors, [&](auto pack) {
    const dim3 grid(blocks(divide_up(rows, kRowWarps)),
                    blocks(divide_up(width, int64_t{pack()} * kRowUnroll * kWarp)));
    chain(over_rows<pack(), after, Body>, grid, kRowWarps * kWarp, 0, stream, rows,
          static_cast<int>(width), body);
  });
  check_launch(op);
}

}  // namespace mixtral::cuda
