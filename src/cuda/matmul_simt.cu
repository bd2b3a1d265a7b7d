#include "cuda/device.cuh"
#include "cuda/dispatch.h"
#include "cuda/product.h"
#include "cuda/status.h"

// Products in f32 without tensor cores, for what the other kernels decline: grouped f32, mixed
// types. A block computes a 128 × 128 tile of the result, a thread 8 × 8 of it. The next tiles of A
// and B are loaded into registers while the present ones are multiplied. Sums run over the inner
// index in order.
namespace mixtral::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 128;  // rows and columns of the result
constexpr int kDepth = 16;  // of the inner index at a time
constexpr int kStride = kTile + 4;
constexpr int kEach = kTile * kDepth / kThreads;  // elements of a tile that a thread loads: 8

/// An operand, [outer, inner] in the product's terms. With inner_major, consecutive inner indices
/// are neighbours in memory; else consecutive outer indices are.
template <class T>
struct Operand {
  const T* data;
  int64_t stride;
  bool packed;  // 8 neighbours are aligned
};

/// The eight elements of a tile that a thread loads: neighbours along the major index.
template <bool inner_major, class T>
struct Fetch {
  float values[kEach];

  static __device__ int outer() {
    const int t = static_cast<int>(threadIdx.x);
    return inner_major ? t / 2 : t % 16 * kEach;
  }
  static __device__ int inner() {
    const int t = static_cast<int>(threadIdx.x);
    return inner_major ? t % 2 * kEach : t / 16;
  }

  __device__ void read(const Operand<T>& x, int64_t first_outer, int64_t end_outer,
                       int64_t first_inner, int64_t end_inner, bool round) {
    const int64_t o = first_outer + outer(), i = first_inner + inner();
    const bool whole = inner_major ? o < end_outer && i + kEach <= end_inner
                                   : i < end_inner && o + kEach <= end_outer;
    const T* from = x.data + (inner_major ? o * x.stride + i : i * x.stride + o);
    if (whole && x.packed) {
      load(from, values);
    } else {
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        const bool inside =
            inner_major ? o < end_outer && i + e < end_inner : i < end_inner && o + e < end_outer;
        values[e] = inside ? widen<float>(from[e]) : 0.0f;
      }
    }
    if (round)
#pragma unroll
      for (int e = 0; e < kEach; ++e) values[e] = __bfloat162float(__float2bfloat16_rn(values[e]));
  }

  /// To shared memory as tile[inner][outer].
  __device__ void write(float* tile) const {
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      if constexpr (inner_major)
        tile[(inner() + e) * kStride + outer()] = values[e];
      else
        tile[inner() * kStride + outer() + e] = values[e];
    }
  }
};

template <class A, class B, class C>
struct Task {
  Operand<A> a;
  Operand<B> b;
  C* c;
  int64_t c_stride;
  int64_t rows, columns, depth;  // of C, and the inner index; per group where they don't vary
  const int* offsets;
  int groups;
  int64_t weight_size;  // O · I
  float scale;
  bool accumulate, round;
};

template <Product::Form form, class A, class B, class C>
__global__ void __launch_bounds__(kThreads) simt(Task<A, B, C> op) {
  using Form = Product::Form;
  __shared__ __align__(16) float tile_a[kDepth * kStride];
  __shared__ __align__(16) float tile_b[kDepth * kStride];
  constexpr bool kInnerA = form != Form::weight, kInnerB = form == Form::forward;

  // The group, its rows (in the weight's gradient: inner indices), and the block's first row of C.
  int64_t begin = 0, end = form == Form::weight ? op.depth : op.rows, group = 0;
  int64_t row = int64_t{blockIdx.y} * kTile;
  if (op.offsets && form == Form::weight) {
    group = blockIdx.z;
    begin = op.offsets[group];
    end = op.offsets[group + 1];
    if (begin == end) return;
  } else if (op.offsets) {
    int64_t tile = blockIdx.y;
    for (;; ++group) {
      if (group == op.groups) return;
      begin = op.offsets[group];
      end = op.offsets[group + 1];
      const int64_t tiles = (end - begin + kTile - 1) / kTile;
      if (tile < tiles) break;
      tile -= tiles;
    }
    row = begin + tile * kTile;
  }
  const int64_t column = int64_t{blockIdx.x} * kTile;
  const int64_t row_end = form == Form::weight ? op.rows : end;
  const int64_t inner_begin = form == Form::weight ? begin : 0;
  const int64_t inner_end = form == Form::weight ? end : op.depth;
  if (form == Form::weight)
    op.c += group * op.weight_size;
  else
    op.b.data += group * op.weight_size;

  Fetch<kInnerA, A> next_a;
  Fetch<kInnerB, B> next_b;
  const int tx = static_cast<int>(threadIdx.x) % 16, ty = static_cast<int>(threadIdx.x) / 16;
  float sums[8][8] = {};
  next_a.read(op.a, row, row_end, inner_begin, inner_end, op.round);
  next_b.read(op.b, column, op.columns, inner_begin, inner_end, op.round);
  for (int64_t k = inner_begin; k < inner_end; k += kDepth) {
    __syncthreads();
    next_a.write(tile_a);
    next_b.write(tile_b);
    __syncthreads();
    if (k + kDepth < inner_end) {
      next_a.read(op.a, row, row_end, k + kDepth, inner_end, op.round);
      next_b.read(op.b, column, op.columns, k + kDepth, inner_end, op.round);
    }
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      float left[8], right[8];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const auto l = *reinterpret_cast<const float4*>(tile_a + d * kStride + half * 64 + ty * 4);
        const auto r = *reinterpret_cast<const float4*>(tile_b + d * kStride + half * 64 + tx * 4);
        left[half * 4] = l.x, left[half * 4 + 1] = l.y;
        left[half * 4 + 2] = l.z, left[half * 4 + 3] = l.w;
        right[half * 4] = r.x, right[half * 4 + 1] = r.y;
        right[half * 4 + 2] = r.z, right[half * 4 + 3] = r.w;
      }
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) sums[i][j] = fmaf(left[i], right[j], sums[i][j]);
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int64_t r = row + i / 4 * 64 + ty * 4 + i % 4;
    if (r >= row_end) continue;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int64_t c = column + j / 4 * 64 + tx * 4 + j % 4;
      if (c >= op.columns) continue;
      C* place = op.c + r * op.c_stride + c;
      const float before = op.accumulate ? widen<float>(*place) : 0.0f;
      *place = narrow<C>(fmaf(op.scale, sums[i][j], before));
    }
  }
}

template <class T>
Operand<T> operand(const void* data, int64_t stride) {
  const auto bytes = static_cast<uintptr_t>(std::min<size_t>(16, kEach * sizeof(T)));
  return {static_cast<const T*>(data), stride,
          reinterpret_cast<uintptr_t>(data) % bytes == 0 && stride % kEach == 0};
}

template <Product::Form form, class A, class B, class C>
void launch(const Product& p, cudaStream_t stream) {
  using Form = Product::Form;
  Task<A, B, C> task;
  task.offsets = p.offsets;
  task.groups = static_cast<int>(p.groups);
  task.weight_size = p.outputs * p.inputs;
  task.scale = static_cast<float>(p.scale);
  task.accumulate = p.accumulate;
  task.round = p.round;
  if constexpr (form == Form::forward) {
    task.a = operand<A>(p.narrow, p.inputs);
    task.b = operand<B>(p.weight, p.inputs);
    task.c = static_cast<C*>(p.wide);
    task.c_stride = p.wide_stride;
    task.rows = p.rows, task.columns = p.outputs, task.depth = p.inputs;
  } else if constexpr (form == Form::input) {
    task.a = operand<A>(p.wide, p.wide_stride);
    task.b = operand<B>(p.weight, p.inputs);
    task.c = static_cast<C*>(p.narrow);
    task.c_stride = p.inputs;
    task.rows = p.rows, task.columns = p.inputs, task.depth = p.outputs;
  } else {
    task.a = operand<A>(p.wide, p.wide_stride);
    task.b = operand<B>(p.narrow, p.inputs);
    task.c = static_cast<C*>(p.weight);
    task.c_stride = p.inputs;
    task.rows = p.outputs, task.columns = p.inputs, task.depth = p.rows;
  }
  // Every group but one can end in a tile that is not full.
  const int64_t row_tiles =
      divide_up(task.rows, kTile) + (p.offsets && form != Form::weight ? p.groups - 1 : 0);
  CHECK(row_tiles < 65536, "too many rows for one launch");
  const dim3 grid(blocks(divide_up(task.columns, kTile)), blocks(row_tiles),
                  blocks(form == Form::weight ? p.groups : 1));
  simt<form><<<grid, kThreads, 0, stream>>>(task);
}

/// Calls f with the types of both operands and the result.
template <class F>
void with_types(const Product& p, F&& f) {
  with_activation(p.left_type(), [&](auto a) {
    with_weight(p.right_type(),
                [&](auto b) { with_activation(p.result_type(), [&](auto c) { f(a, b, c); }); });
  });
}

}  // namespace

void simt_product(const Product& p, cudaStream_t stream) {
  using Form = Product::Form;
  with_types(p, [&](auto a, auto b, auto c) {
    using A = type_of<decltype(a)>;
    using B = type_of<decltype(b)>;
    using C = type_of<decltype(c)>;
    switch (p.form) {
      case Form::forward:
        return launch<Form::forward, A, B, C>(p, stream);
      case Form::input:
        return launch<Form::input, A, B, C>(p, stream);
      case Form::weight:
        if constexpr (sizeof(C) == 4 && !std::is_same_v<B, __half>)
          return launch<Form::weight, A, B, C>(p, stream);
        else
          CHECK(false, "gradients of weights are f32");
    }
  });
  check_launch("grouped_matmul");
}

}  // namespace mixtral::cuda
