#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

/// What kernels share: number formats, wide loads and stores, reductions in a fixed order.
namespace mixtral::cuda {

using Bf16 = __nv_bfloat16;
using Half = __half;

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Elements to arithmetic (A is float or double) and back, each rounded once to nearest even.
template <class A>
__device__ inline A widen(float x) {
  return static_cast<A>(x);
}
template <class A>
__device__ inline A widen(double x) {
  return static_cast<A>(x);
}
template <class A>
__device__ inline A widen(Bf16 x) {
  return static_cast<A>(__bfloat162float(x));
}
template <class A>
__device__ inline A widen(Half x) {
  return static_cast<A>(__half2float(x));
}

template <class T>
__device__ inline T narrow(float x) {
  if constexpr (sizeof(T) >= 4)
    return static_cast<T>(x);
  else if constexpr (__is_same(T, Bf16))
    return __float2bfloat16_rn(x);
  else
    return __float2half_rn(x);
}
template <class T>
__device__ inline T narrow(double x) {
  if constexpr (sizeof(T) >= 4) {
    return static_cast<T>(x);
  } else {
    // To a float by rounding to odd, which keeps on which side of a tie x lies; then to T.
    const float toward_zero = __double2float_rz(x);
    const bool inexact = static_cast<double>(toward_zero) != x;
    return narrow<T>(inexact ? __int_as_float(__float_as_int(toward_zero) | 1) : toward_zero);
  }
}

template <class T, int n>
struct alignas(sizeof(T) * n < 16 ? sizeof(T) * n : 16) Pack {
  T at[n];
};

/// n consecutive elements, in as few accesses as their alignment allows; n is a power of two, and
/// the address a multiple of min(16, n · sizeof(T)) bytes.
template <int n, class A, class T>
__device__ inline void load(const T* from, A (&to)[n]) {
  const auto pack = *reinterpret_cast<const Pack<T, n>*>(from);
#pragma unroll
  for (int i = 0; i < n; ++i) to[i] = widen<A>(pack.at[i]);
}

template <int n, class A, class T>
__device__ inline void store(T* to, const A (&from)[n]) {
  Pack<T, n> pack;
#pragma unroll
  for (int i = 0; i < n; ++i) pack.at[i] = narrow<T>(from[i]);
  *reinterpret_cast<Pack<T, n>*>(to) = pack;
}

/// Two bf16 in a word, the first in its lower half.
__device__ inline uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(both);
}

/// Elements of T in 16 bytes.
template <class T>
constexpr int kPackOf = 16 / static_cast<int>(sizeof(T));

struct Sum {
  template <class A>
  __device__ static A identity() {
    return 0;
  }
  template <class A>
  __device__ A operator()(A a, A b) const {
    return a + b;
  }
};
struct Max {
  template <class A>
  __device__ static A identity() {
    return static_cast<A>(-INFINITY);
  }
  template <class A>
  __device__ A operator()(A a, A b) const {
    return a > b ? a : b;
  }
};

/// The reduction over `lanes` neighbouring lanes (a power of two), given to each of them.
template <int lanes = kWarp, class A, class Op>
__device__ inline A warp_reduce(A value, Op op) {
#pragma unroll
  for (int step = lanes / 2; step > 0; step /= 2)
    value = op(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}
template <int lanes = kWarp, class A>
__device__ inline A warp_sum(A value) {
  return warp_reduce<lanes>(value, Sum{});
}

/// The reduction over a block of up to 1024 threads (whole warps), given to each of them.
template <class A, class Op>
__device__ inline A block_reduce(A value, Op op) {
  __shared__ A parts[kWarp];
  value = warp_reduce(value, op);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  __syncthreads();  // the parts of a reduction before this one have been read
  if (lane == 0) parts[warp] = value;
  __syncthreads();
  value = lane < static_cast<int>(blockDim.x / kWarp) ? parts[lane] : Op::template identity<A>();
  return warp_reduce(value, op);
}
template <class A>
__device__ inline A block_sum(A value) {
  return block_reduce(value, Sum{});
}

/// 2^x.
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
/// For results that are rounded to bf16: two special functions, good to about 2^-21.
__device__ inline float sigmoid_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(1.0f + exp2_fast(-kLog2E * x)));
  return y;
}
/// As exact as a result of type T needs.
template <class T>
__device__ inline float sigmoid_for(float x) {
  return __is_same(T, Bf16) ? sigmoid_fast(x) : sigmoid(x);
}
/// w · silu(gate) · up, for a result of type T.
template <class T>
__device__ inline float swiglu(float gate, float up, float w) {
  return w * (gate * sigmoid_for<T>(gate) * up);
}

}  // namespace mixtral::cuda
