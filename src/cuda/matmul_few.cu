#include "cuda/chain.cuh"
#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "cuda/product.h"
#include "cuda/status.h"

// Forward products of few rows, as in decoding. Reading the weights bounds them; a weight is read
// once for up to eight rows of its group. A block computes two outputs, so that there are many
// blocks and the last wave is short; its threads divide the inner index among them. Activations
// come from the cache.
namespace mixtral::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarp;
constexpr int kOutputs = 2;
constexpr int kUnroll = 4;  // packs of weights in flight for each output and thread
constexpr int kRows = 8;    // at a time

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

/// Rows begin .. begin + count of a group, at most `rows`, for outputs first, first + 1.
template <int rows, class X, class W, class Y>
__device__ void multiply(const Task<X, W, Y>& op, const W* weight, int begin, int count, int first,
                         float (&parts)[kWarps][kOutputs * kRows]) {
  constexpr int n = kPackOf<W>, kStep = kThreads * n;
  float sums[kOutputs][rows] = {};
  for (int i = static_cast<int>(threadIdx.x) * n; i < op.inputs; i += kUnroll * kStep) {
    Pack<W, n> packs[kUnroll][kOutputs];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
#pragma unroll
      for (int o = 0; o < kOutputs; ++o)
        if (i + u * kStep < op.inputs)
          packs[u][o] = *reinterpret_cast<const Pack<W, n>*>(
              weight + int64_t{min(first + o, op.outputs - 1)} * op.inputs + i + u * kStep);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int column = i + u * kStep;
      if (column >= op.inputs) break;
#pragma unroll
      for (int r = 0; r < rows; ++r) {
        float x[n];
        load(op.x + int64_t{begin + min(r, count - 1)} * op.inputs + column, x);
#pragma unroll
        for (int o = 0; o < kOutputs; ++o)
#pragma unroll
          for (int j = 0; j < n; ++j)
            sums[o][r] = fmaf(widen<float>(packs[u][o].at[j]), x[j], sums[o][r]);
      }
    }
  }
  __syncthreads();  // everybody has read the partial sums of the rows before
#pragma unroll
  for (int o = 0; o < kOutputs; ++o)
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      const float sum = warp_sum(sums[o][r]);
      if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp][o * kRows + r] = sum;
    }
  __syncthreads();
  const int o = static_cast<int>(threadIdx.x) / kRows, r = static_cast<int>(threadIdx.x) % kRows;
  if (o >= kOutputs || r >= count || first + o >= op.outputs) return;
  float sum = 0;
  for (int warp = 0; warp < kWarps; ++warp) sum += parts[warp][threadIdx.x];
  Y* place = op.y + int64_t{begin + r} * op.y_stride + first + o;
  const float before = op.accumulate ? widen<float>(*place) : 0.0f;
  *place = narrow<Y>(fmaf(op.scale, sum, before));
}

/// The order of a row's sum depends on the inner index alone, so its bits do not depend on the rows
/// beside it.
template <class X, class W, class Y>
__global__ void __launch_bounds__(kThreads) few_rows(Task<X, W, Y> op) {
  __shared__ float parts[kWarps][kOutputs * kRows];
  allow_next();
  wait_for_previous();
  const int group = static_cast<int>(blockIdx.y);
  const int end = op.offsets ? op.offsets[group + 1] : op.rows;
  const int first = static_cast<int>(blockIdx.x) * kOutputs;
  const W* weight = op.weight + int64_t{group} * op.outputs * op.inputs;
  for (int row = op.offsets ? op.offsets[group] : 0; row < end; row += kRows) {
    const int count = min(kRows, end - row);
    if (count == 1)
      multiply<1>(op, weight, row, count, first, parts);
    else if (count == 2)
      multiply<2>(op, weight, row, count, first, parts);
    else if (count <= 4)
      multiply<4>(op, weight, row, count, first, parts);
    else
      multiply<kRows>(op, weight, row, count, first, parts);
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
        const dim3 grid(blocks(divide_up(p.outputs, kOutputs)), blocks(p.groups));
        chain(few_rows<X, W, Y>, grid, kThreads, 0, stream,
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
