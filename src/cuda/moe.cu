#include "cuda/backend.h"
#include "cuda/combine_rows.cuh"
#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "cuda/norm_few.h"
#include "cuda/rows.cuh"
#include "cuda/status.h"
#include "ops/moe.h"

// Rows move between tokens' order and experts' order by the tables that Route made, each output
// written once. One pass over memory, bound by bandwidth. (Route and its relatives: route.cu.)
namespace mixtral::cuda {
namespace {

template <class T>
struct Gather {
  const T* x;
  const int* source;
  T* y;
  int width, divisor;
  template <int n>
  __device__ void at(int64_t row, int column) const {
    Pack<T, n> pack =
        *reinterpret_cast<const Pack<T, n>*>(x + int64_t{source[row] / divisor} * width + column);
    *reinterpret_cast<Pack<T, n>*>(y + row * width + column) = pack;
  }
};

template <class T>
struct Combine {
  const T* y;
  const int* slot;
  const T* residual;
  T* out;
  int width, k;
  template <int n>
  __device__ void at(int64_t row, int column) const {
    float sum[n];
    combine_rows<n>(y, slot + row * k, k, width, column,
                    residual ? residual + row * width : nullptr, sum);
    store(out + row * width + column, sum);
  }
};

template <class T>
struct SwiGluForward {
  const T* gate_up;
  const float* weights;
  const int* source;
  T* h;
  int width;
  template <int n>
  __device__ void at(int64_t row, int column) const {
    const float w = weights[source[row]];
    float gate[n], up[n];
    load(gate_up + row * 2 * width + column, gate);
    load(gate_up + (row * 2 + 1) * width + column, up);
#pragma unroll
    for (int i = 0; i < n; ++i) up[i] = swiglu<T>(gate[i], up[i], w);
    store(h + row * width + column, up);
  }
};

template <class T>
struct SwiGluGradient {
  const T* gate_up;
  const float* weights;
  const int* source;
  const T* dh;
  T* d_gate_up;
  float* dweights;
  T* h;  // or null
  int width;
};

/// A block a row, for the sum over it.
template <int n, class T>
__global__ void __launch_bounds__(256) swiglu_backward(SwiGluGradient<T> op) {
  const int64_t row = blockIdx.x;
  const int assignment = op.source[row];
  const float w = op.weights[assignment];
  const T* gates = op.gate_up + row * 2 * op.width;
  T* d_gates = op.d_gate_up + row * 2 * op.width;
  float dw = 0;
  for (int column = static_cast<int>(threadIdx.x) * n; column < op.width;
       column += static_cast<int>(blockDim.x) * n) {
    float gate[n], up[n], dh[n];
    load(gates + column, gate);
    load(gates + op.width + column, up);
    load(op.dh + row * op.width + column, dh);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const float s = sigmoid_for<T>(gate[i]);
      const float silu = gate[i] * s, both = silu * up[i], d = w * dh[i];
      dw += dh[i] * both;
      dh[i] = w * both;
      gate[i] = d * up[i] * (s + silu * (1 - s));
      up[i] = d * silu;
    }
    store(d_gates + column, gate);
    store(d_gates + op.width + column, up);
    if (op.h) store(op.h + row * op.width + column, dh);
  }
  dw = block_sum(dw);
  if (threadIdx.x == 0) op.dweights[assignment] = dw;
}

}  // namespace

void CudaBackend::run(const ops::GatherRows& op) {
  if (waiting_.route && joins(*waiting_.norm, *waiting_.route, op)) return launch_waiting(&op);
  use_device();
  const int64_t width = op.x.dim(1);
  with_activation(op.x.dtype(), [&](auto t) {
    using T = type_of<decltype(t)>;
    each_row<kPackOf<T>, After::wait>(
        "gather_rows", op.y.dim(0), width, {op.x, op.y}, stream_,
        Gather<T>{data<T>(op.x), data<int>(op.source), data<T>(op.y), static_cast<int>(width),
                  static_cast<int>(op.divisor)});
  });
  if (op.y.dim(0) > 0) chained();
}

void combine_rows(const ops::CombineRows& op, cudaStream_t stream) {
  const int64_t width = op.y.dim(1);
  with_activation(op.y.dtype(), [&](auto t) {
    using T = type_of<decltype(t)>;
    each_row<kPackOf<T>>(
        "combine_rows", op.out.dim(0), width, {op.y, op.residual, op.out}, stream,
        Combine<T>{data<T>(op.y), data<int>(op.slot), data<T>(op.residual), data<T>(op.out),
                   static_cast<int>(width), static_cast<int>(op.slot.dim(1))});
  });
}

void CudaBackend::run(const ops::CombineRows& op) {
  use_device();
  if (is_few(op)) {
    waiting_.combine = op;
    return;
  }
  combine_rows(op, stream_);
  if (op.out.dim(0) > 0) chained();
}

void CudaBackend::run(const ops::SwiGlu& op) {
  use_device();
  const int64_t width = op.h.dim(1);
  with_activation(op.h.dtype(), [&](auto t) {
    using T = type_of<decltype(t)>;
    each_row<kPackOf<T>>(
        "swiglu", op.h.dim(0), width, {op.gate_up, op.h}, stream_,
        SwiGluForward<T>{data<T>(op.gate_up), data<float>(op.weights), data<int>(op.source),
                         data<T>(op.h), static_cast<int>(width)});
  });
}

void CudaBackend::run(const ops::SwiGluBackward& op) {
  use_device();
  const int64_t rows = op.dh.dim(0), width = op.dh.dim(1);
  if (rows == 0) return;
  with_activation(op.dh.dtype(), [&](auto t) {
    using T = type_of<decltype(t)>;
    with_packs<kPackOf<T>>(width, {op.gate_up, op.dh, op.d_gate_up, op.h}, [&](auto pack) {
      swiglu_backward<pack()><<<blocks(rows), 256, 0, stream_>>>(SwiGluGradient<T>{
          data<T>(op.gate_up), data<float>(op.weights), data<int>(op.source), data<T>(op.dh),
          data<T>(op.d_gate_up), data<float>(op.dweights), data<T>(op.h), static_cast<int>(width)});
    });
  });
  check_launch("swiglu_backward");
}

}  // namespace mixtral::cuda
