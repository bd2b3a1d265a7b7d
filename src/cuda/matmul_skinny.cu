#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "cuda/product.h"
#include "cuda/scratch.h"
#include "cuda/status.h"

// Products with few outputs in exact f32, as a router's: eight outputs at a time. All three forms
// are bound by reading the activations once (and for dx, writing them).
namespace mixtral::cuda {
namespace {

constexpr int kOutputs = 8;
constexpr int kThreads = 128;
constexpr int kRows = 4;  // a warp

template <class X, class W, class Y>
struct Task {
  X* narrow;
  W* weight;
  Y* wide;
  int64_t rows, wide_stride;
  int outputs, inputs;
  float scale;
  bool accumulate;
};

/// A warp takes four rows, so that each pack of weights is used four times.
template <int n, class X, class W, class Y>
__global__ void __launch_bounds__(kThreads) forward(Task<const X, const W, Y> op) {
  const int lane = threadIdx.x % kWarp;
  const int64_t row = (int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp) * kRows;
  const int first = static_cast<int>(blockIdx.y) * kOutputs;
  float sums[kRows][kOutputs] = {};
  for (int i = lane * n; i < op.inputs; i += kWarp * n) {
    float x[kRows][n];
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      load(op.narrow + min(row + r, op.rows - 1) * op.inputs + i, x[r]);
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) {
      float w[n];
      load(op.weight + int64_t{min(first + o, op.outputs - 1)} * op.inputs + i, w);
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int j = 0; j < n; ++j) sums[r][o] = fmaf(x[r][j], w[j], sums[r][o]);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) {
      const float sum = warp_sum(sums[r][o]) * op.scale;
      if (lane != (r * kOutputs + o) || row + r >= op.rows || first + o >= op.outputs) continue;
      Y* place = op.wide + (row + r) * op.wide_stride + first + o;
      *place = narrow<Y>(op.accumulate ? widen<float>(*place) + sum : sum);
    }
}

constexpr int kRowsOfBlock = 32;

/// A thread has a pack of columns. With up to eight outputs, the columns' weights stay in registers
/// while it goes over the block's rows; with more, they are read again for each row.
template <int n, class X, class W, class Y>
__global__ void __launch_bounds__(kThreads) input(Task<X, const W, const Y> op) {
  const int i = (static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x)) * n;
  if (i >= op.inputs) return;
  const int64_t begin = int64_t{blockIdx.y} * kRowsOfBlock;
  const int64_t end = min(begin + kRowsOfBlock, op.rows);
  if (op.outputs <= kOutputs) {
    float w[kOutputs][n];
#pragma unroll
    for (int o = 0; o < kOutputs; ++o)
      if (o < op.outputs) load(op.weight + int64_t{o} * op.inputs + i, w[o]);
    for (int64_t row = begin; row < end; ++row) {
      float sum[n] = {}, before[n] = {};
      X* place = op.narrow + row * op.inputs + i;
      if (op.accumulate) load(place, before);
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) {
        if (o >= op.outputs) break;
        const float dy = widen<float>(op.wide[row * op.wide_stride + o]);
#pragma unroll
        for (int j = 0; j < n; ++j) sum[j] = fmaf(dy, w[o][j], sum[j]);
      }
#pragma unroll
      for (int j = 0; j < n; ++j) before[j] += op.scale * sum[j];
      store(place, before);
    }
    return;
  }
  for (int64_t row = begin; row < end; ++row) {
    float sum[n] = {}, before[n] = {}, w[n];
    X* place = op.narrow + row * op.inputs + i;
    if (op.accumulate) load(place, before);
    for (int o = 0; o < op.outputs; ++o) {
      const float dy = widen<float>(op.wide[row * op.wide_stride + o]);
      load(op.weight + int64_t{o} * op.inputs + i, w);
#pragma unroll
      for (int j = 0; j < n; ++j) sum[j] = fmaf(dy, w[j], sum[j]);
    }
#pragma unroll
    for (int j = 0; j < n; ++j) before[j] += op.scale * sum[j];
    store(place, before);
  }
}

/// partial[chunk, o, i], the sum over the chunk's rows. A thread has a pack of columns and eight
/// outputs.
template <int n, class X, class Y>
__global__ void __launch_bounds__(kThreads)
    weight_partial(Task<const X, float, const Y> op, int64_t rows_of_chunk) {
  const int i = (static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x)) * n;
  if (i >= op.inputs) return;
  const int first = static_cast<int>(blockIdx.z) * kOutputs;
  const int64_t begin = blockIdx.y * rows_of_chunk, end = min(begin + rows_of_chunk, op.rows);
  float sums[kOutputs][n] = {};
#pragma unroll 2
  for (int64_t row = begin; row < end; ++row) {
    float x[n];
    load(op.narrow + row * op.inputs + i, x);
    const Y* dy = op.wide + row * op.wide_stride + first;
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) {
      const float d = first + o < op.outputs ? widen<float>(dy[o]) : 0.0f;
#pragma unroll
      for (int j = 0; j < n; ++j) sums[o][j] = fmaf(d, x[j], sums[o][j]);
    }
  }
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) {
    if (first + o >= op.outputs) break;
#pragma unroll
    for (int j = 0; j < n; ++j) sums[o][j] *= op.scale;
    store(op.weight + (int64_t{blockIdx.y} * op.outputs + first + o) * op.inputs + i, sums[o]);
  }
}

Tensor matrix(const void* data, int64_t rows, int64_t columns, Dtype dtype) {
  return {const_cast<void*>(data), {rows, columns}, dtype};
}

template <class X, class W, class Y>
Task<X, W, Y> task_of(const Product& p) {
  return {static_cast<X*>(p.narrow),
          static_cast<W*>(p.weight),
          static_cast<Y*>(p.wide),
          p.rows,
          p.wide_stride,
          static_cast<int>(p.outputs),
          static_cast<int>(p.inputs),
          static_cast<float>(p.scale),
          p.accumulate};
}

template <class X, class W, class Y>
void multiply(const Product& p, int processors, Scratch& scratch, cudaStream_t stream) {
  using Form = Product::Form;
  const Tensor narrow = matrix(p.narrow, p.rows, p.inputs, p.narrow_type);
  const Tensor weight = matrix(p.weight, p.outputs, p.inputs, p.weight_type);
  with_packs<kPackOf<X>>(p.inputs, {narrow, weight}, [&](auto pack) {
    const unsigned columns = blocks(divide_up(p.inputs, int64_t{pack()} * kThreads));
    if (p.form == Form::forward) {
      const dim3 grid(blocks(divide_up(p.rows, kThreads / kWarp * kRows)),
                      blocks(divide_up(p.outputs, kOutputs)));
      forward<pack()><<<grid, kThreads, 0, stream>>>(task_of<const X, const W, Y>(p));
    } else if (p.form == Form::input) {
      const dim3 grid(columns, blocks(divide_up(p.rows, kRowsOfBlock)));
      input<pack()><<<grid, kThreads, 0, stream>>>(task_of<X, const W, const Y>(p));
    } else if constexpr (sizeof(W) == 4) {
      const int64_t chunks =
          std::clamp<int64_t>(int64_t{processors} * 4 / columns, 1, divide_up(p.rows, 16));
      float* partial = scratch.take<float>(chunks * p.outputs * p.inputs);
      auto task = task_of<const X, float, const Y>(p);
      task.weight = partial;
      const dim3 grid(columns, blocks(chunks), blocks(divide_up(p.outputs, kOutputs)));
      weight_partial<pack()><<<grid, kThreads, 0, stream>>>(task, divide_up(p.rows, chunks));
      add_columns(partial, chunks, p.outputs * p.inputs, static_cast<float*>(p.weight), stream);
    }
  });
}

}  // namespace

void skinny_product(const Product& p, int processors, Scratch& scratch, cudaStream_t stream) {
  with_activation(p.narrow_type, [&](auto x) {
    with_weight(p.weight_type, [&](auto w) {
      with_activation(p.wide_type, [&](auto y) {
        multiply<type_of<decltype(x)>, type_of<decltype(w)>, type_of<decltype(y)>>(p, processors,
                                                                                   scratch, stream);
      });
    });
  });
  check_launch("grouped_matmul");
}

}  // namespace mixtral::cuda
