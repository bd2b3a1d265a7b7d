#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "cuda/product.h"
#include "cuda/status.h"

// Forward products with few rows, as decoding has: bound by reading the weights, each of which is
// read once for all rows of its group. A warp has two outputs; activations come from the cache.
namespace mixtral::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarp;
constexpr int kOutputs = 2;  // a warp
constexpr int kUnroll = 4;   // packs of weights in flight an output and lane
constexpr int kRows = 8;     // at a time

template <class X, class W, class Y>
struct Task {
  const X* x;
  const W* weight;
  Y* y;
  const int* offsets;
  int64_t y_stride;
  int rows, outputs, inputs;
  float scale;
  bool accumulate;
};

/// Rows begin .. begin + rows of a group, for outputs first .. first + kOutputs.
template <int rows, class X, class W, class Y>
__device__ void multiply(const Task<X, W, Y>& op, const W* weight, int begin, int first) {
  constexpr int n = kPackOf<W>;
  const int lane = threadIdx.x % kWarp;
  float sums[kOutputs][rows] = {};
  for (int i = lane * n; i < op.inputs; i += kUnroll * kWarp * n) {
    Pack<W, n> packs[kUnroll][kOutputs];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
#pragma unroll
      for (int o = 0; o < kOutputs; ++o)
        if (i + u * kWarp * n < op.inputs)
          packs[u][o] = *reinterpret_cast<const Pack<W, n>*>(
              weight + int64_t{min(first + o, op.outputs - 1)} * op.inputs + i + u * kWarp * n);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int column = i + u * kWarp * n;
      if (column >= op.inputs) break;
#pragma unroll
      for (int r = 0; r < rows; ++r) {
        float x[n];
        load(op.x + int64_t{begin + r} * op.inputs + column, x);
#pragma unroll
        for (int o = 0; o < kOutputs; ++o)
#pragma unroll
          for (int j = 0; j < n; ++j)
            sums[o][r] = fmaf(widen<float>(packs[u][o].at[j]), x[j], sums[o][r]);
      }
    }
  }
#pragma unroll
  for (int o = 0; o < kOutputs; ++o)
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      const float sum = warp_sum(sums[o][r]) * op.scale;
      if (lane != o * rows + r || first + o >= op.outputs) continue;
      Y* place = op.y + int64_t{begin + r} * op.y_stride + first + o;
      *place = narrow<Y>(op.accumulate ? widen<float>(*place) + sum : sum);
    }
}

template <class X, class W, class Y>
__global__ void __launch_bounds__(kThreads) few_rows(Task<X, W, Y> op) {
  const int group = static_cast<int>(blockIdx.y);
  int row = op.offsets ? op.offsets[group] : 0;
  const int end = op.offsets ? op.offsets[group + 1] : op.rows;
  const int first =
      (static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / kWarp) * kOutputs;
  if (first >= op.outputs) return;
  const W* weight = op.weight + int64_t{group} * op.outputs * op.inputs;
  // In the same order whatever the number of rows, so a row's bits do not depend on the others.
  while (row < end) {
    const int left = end - row;
    if (left >= kRows)
      multiply<kRows>(op, weight, row, first), row += kRows;
    else if (left >= 4)
      multiply<4>(op, weight, row, first), row += 4;
    else if (left >= 2)
      multiply<2>(op, weight, row, first), row += 2;
    else
      multiply<1>(op, weight, row, first), row += 1;
  }
}

}  // namespace

bool few_rows_product(const Product& p, cudaStream_t stream) {
  if (p.form != Product::Form::forward || p.round) return false;
  bool done = false;
  with_activation(p.narrow_type, [&](auto x) {
    with_weight(p.weight_type, [&](auto w) {
      with_activation(p.wide_type, [&](auto y) {
        using X = type_of<decltype(x)>;
        using W = type_of<decltype(w)>;
        using Y = type_of<decltype(y)>;
        // The packs of activations that go with a pack of weights are aligned as these are.
        if (!packs(kPackOf<W>, p.inputs,
                   {Tensor(p.narrow, {1}, p.narrow_type), Tensor(p.weight, {1}, p.weight_type)}))
          return;
        const dim3 grid(blocks(divide_up(p.outputs, kWarps * kOutputs)), blocks(p.groups));
        few_rows<<<grid, kThreads, 0, stream>>>(
            Task<X, W, Y>{static_cast<const X*>(p.narrow), static_cast<const W*>(p.weight),
                          static_cast<Y*>(p.wide), p.offsets, p.wide_stride,
                          static_cast<int>(p.rows), static_cast<int>(p.outputs),
                          static_cast<int>(p.inputs), static_cast<float>(p.scale), p.accumulate});
        done = true;
      });
    });
  });
  check_launch("grouped_matmul");
  return done;
}

}  // namespace mixtral::cuda
