#include <cmath>

#include "base/advice.h"
#include "cuda/backend.h"
#include "cuda/chain.cuh"
#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "cuda/norm_few.h"
#include "cuda/product.h"
#include "cuda/row_shape.h"
#include "cuda/scratch.h"
#include "cuda/status.h"
#include "ops/norm.h"

// A block a row, which it keeps in registers: memory is read and written once. The gradient of the
// weight is a sum over rows: each of a fixed number of blocks sums the rows that fall to it, and a
// second launch adds the blocks' sums in order. Bound by bandwidth.
namespace mixtral::cuda {
namespace {

/// Calls f with the number of packs of n that a thread holds, as a constant; at most 64 elements,
/// so that they stay in registers.
template <int n, class F>
void with_items(int64_t items, F&& f) {
  if (items <= 1) return f(std::integral_constant<int, 1>{});
  if (items <= 2) return f(std::integral_constant<int, 2>{});
  if (items <= 4) return f(std::integral_constant<int, 4>{});
  if (items <= 8) return f(std::integral_constant<int, 8>{});
  if constexpr (n == 1)
    if (items <= 32) return f(std::integral_constant<int, 32>{});
  throw AdvisedError("‹device cuda›: rows to normalise are at most 16384 elements wide");
}

template <class T, class W>
struct Forward {
  const T *x, *residual;
  const W* weight;
  T *sum, *y;
  float* rstd;
  int width;
  float eps;
};

template <int n, int items, class T, class W>
__global__ void __launch_bounds__(512) rms_norm(Forward<T, W> op) {
  allow_next();
  // The weights do not wait for the sum, as long as there are registers for them.
  constexpr bool early = items * n <= 16;
  float weight[early ? items : 1][n];
  if constexpr (early) {
#pragma unroll
    for (int i = 0; i < items; ++i) {
      const int column = (i * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * n;
      if (column < op.width) load(op.weight + column, weight[i]);
    }
  }
  wait_for_previous();
  const int64_t row = blockIdx.x;
  const int64_t start = row * op.width;
  float s[items][n];
  float squares = 0;
#pragma unroll
  for (int i = 0; i < items; ++i) {
    const int column = (i * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * n;
    if (column >= op.width) break;
    load(op.x + start + column, s[i]);
    if (op.residual) {
      float added[n];
      load(op.residual + start + column, added);
#pragma unroll
      for (int j = 0; j < n; ++j) s[i][j] = widen<float>(narrow<T>(s[i][j] + added[j]));
      store(op.sum + start + column, s[i]);
    }
#pragma unroll
    for (int j = 0; j < n; ++j) squares += s[i][j] * s[i][j];
  }
  const float mean = block_sum(squares) / static_cast<float>(op.width);
  const float scale = 1.0f / sqrtf(mean + op.eps);
  if (op.rstd && threadIdx.x == 0) op.rstd[row] = scale;
#pragma unroll
  for (int i = 0; i < items; ++i) {
    const int column = (i * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * n;
    if (column >= op.width) break;
    float(&y)[n] = weight[early ? i : 0];
    if constexpr (!early) load(op.weight + column, y);
#pragma unroll
    for (int j = 0; j < n; ++j) y[j] *= s[i][j] * scale;
    store(op.y + start + column, y);
  }
}

template <class T, class W>
struct Backward {
  const T *dy, *x;
  const W* weight;
  const float* rstd;
  T* dx;
  float* partial;  // [gridDim.x, width], or null
  int64_t rows;
  int width;
  bool accumulate;
};

/// Rows blockIdx.x, blockIdx.x + gridDim.x, … of dx, and those rows' part of dweight.
template <int n, int items, class T, class W>
__global__ void __launch_bounds__(512) rms_norm_backward(Backward<T, W> op) {
  // What is added to is read with the rest, as long as there are registers for it.
  constexpr bool early = items <= 2;
  float dweight[items][n] = {};
  for (int64_t row = blockIdx.x; row < op.rows; row += gridDim.x) {
    const int64_t start = row * op.width;
    const float rstd = op.rstd[row];
    float normed[items][n], g[items][n], before[early ? items : 1][n];
    float dot = 0;
#pragma unroll
    for (int i = 0; i < items; ++i) {
      const int column = (i * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * n;
      if (column >= op.width) break;
      float weight[n];
      load(op.x + start + column, normed[i]);
      load(op.dy + start + column, g[i]);
      load(op.weight + column, weight);
      if (early && op.accumulate) load(op.dx + start + column, before[early ? i : 0]);
#pragma unroll
      for (int j = 0; j < n; ++j) {
        normed[i][j] *= rstd;
        dweight[i][j] += g[i][j] * normed[i][j];
        g[i][j] *= weight[j];
        dot += g[i][j] * normed[i][j];
      }
    }
    const float mean = block_sum(dot) / static_cast<float>(op.width);
#pragma unroll
    for (int i = 0; i < items; ++i) {
      const int column = (i * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * n;
      if (column >= op.width) break;
      float(&dx)[n] = before[early ? i : 0];
      if (!early && op.accumulate) load(op.dx + start + column, dx);
#pragma unroll
      for (int j = 0; j < n; ++j)
        dx[j] = (op.accumulate ? dx[j] : 0.0f) + rstd * (g[i][j] - normed[i][j] * mean);
      store(op.dx + start + column, dx);
    }
  }
  if (!op.partial) return;
#pragma unroll
  for (int i = 0; i < items; ++i) {
    const int column = (i * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * n;
    if (column >= op.width) break;
    store(op.partial + int64_t{blockIdx.x} * op.width + column, dweight[i]);
  }
}

}  // namespace

void CudaBackend::run(const ops::RmsNorm& op) {
  if (waiting_.combine && !waiting_.norm && is_few(op) && joins(*waiting_.combine, op)) {
    waiting_.norm = op;
    return;
  }
  use_device();
  const int64_t rows = op.x.dim(0), width = op.x.dim(1);
  if (rows == 0) return;
  if (is_few(op)) {
    waiting_.norm = op;
    return;
  }
  with_activation(op.x.dtype(), [&](auto t) {
    with_weight(op.weight.dtype(), [&](auto w) {
      using T = type_of<decltype(t)>;
      using W = type_of<decltype(w)>;
      with_packs<kPackOf<T>>(width, {op.x, op.residual, op.weight, op.sum, op.y}, [&](auto pack) {
        const RowShape shape = shape_of(width, pack());
        with_items<pack()>(shape.items, [&](auto items) {
          chain(rms_norm<pack(), items(), T, W>, dim3(blocks(rows)),
                static_cast<unsigned>(shape.threads), 0, stream_,
                Forward<T, W>{data<T>(op.x), data<T>(op.residual), data<W>(op.weight),
                              data<T>(op.sum), data<T>(op.y), data<float>(op.rstd),
                              static_cast<int>(width), static_cast<float>(op.eps)});
        });
      });
    });
  });
  check_launch("rms_norm");
  chained();
}

void CudaBackend::run(const ops::RmsNormBackward& op) {
  use_device();
  const int64_t rows = op.x.dim(0), width = op.x.dim(1);
  if (rows == 0) return;
  int64_t count = 0;
  float* partial = nullptr;
  with_activation(op.x.dtype(), [&](auto t) {
    with_weight(op.weight.dtype(), [&](auto w) {
      using T = type_of<decltype(t)>;
      using W = type_of<decltype(w)>;
      with_packs<kPackOf<T>>(width, {op.dy, op.x, op.weight, op.dx}, [&](auto pack) {
        const RowShape shape = shape_of(width, pack());
        // As many blocks as fit beside each other.
        count = std::min<int64_t>(rows, int64_t{processors_} * std::max(2, 1024 / shape.threads));
        if (op.dweight) partial = scratch().take<float>(count * width);
        with_items<pack()>(shape.items, [&](auto items) {
          rms_norm_backward<pack(), items()>
              <<<blocks(count), static_cast<unsigned>(shape.threads), 0, stream_>>>(Backward<T, W>{
                  data<T>(op.dy), data<T>(op.x), data<W>(op.weight), data<float>(op.rstd),
                  data<T>(op.dx), partial, rows, static_cast<int>(width), op.accumulate});
        });
      });
    });
  });
  if (partial) add_columns(partial, count, width, data<float>(op.dweight), stream_);
  check_launch("rms_norm_backward");
}

}  // namespace mixtral::cuda
